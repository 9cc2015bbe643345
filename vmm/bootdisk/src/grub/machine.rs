//! Carries out statements.

use std::cell::Cell;
use std::rc::Rc;

use super::env::State;
use super::expand::expand;
use super::lexer::Word;
use super::parser::{Script, Statement};
use crate::error::Fault;
use crate::limits;
use crate::menu::Boot;
use crate::volume::Volumes;

/// What may still be done; shared by a script and all its entries.
#[derive(Debug)]
pub(super) struct Left {
    statements: Cell<u32>,
    looks: Cell<u32>,
    entries: Cell<usize>,
}

impl Left {
    pub(super) fn new() -> Rc<Self> {
        let (statements, looks) = (Cell::new(limits::STATEMENTS_MAX), Cell::new(limits::LOOKS_MAX));
        Rc::new(Self { statements, looks, entries: Cell::new(limits::ENTRIES_MAX) })
    }

    fn statement(&self) -> Result<(), Fault> {
        let bound = Fault::Bound { what: "statements", bound: limits::STATEMENTS_MAX.into() };
        self.statements.set(self.statements.get().checked_sub(1).ok_or(bound)?);
        Ok(())
    }

    pub(super) fn look(&self) -> Result<(), Fault> {
        let bound = Fault::Bound { what: "looks into file systems", bound: limits::LOOKS_MAX.into() };
        self.looks.set(self.looks.get().checked_sub(1).ok_or(bound)?);
        Ok(())
    }

    fn entry(&self) -> Result<(), Fault> {
        let left = self.entries.get().checked_sub(1);
        self.entries.set(left.ok_or_else(|| Fault::bound("entries", limits::ENTRIES_MAX))?);
        Ok(())
    }
}

/// How a statement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
    Return,
    /// Another configuration took over.
    Stop,
}

/// An entry as the script offered it.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) title: String,
    pub(super) id: Option<String>,
    pub(super) what: Offered,
}

/// What is behind an entry.
#[derive(Debug)]
pub(super) enum Offered {
    /// Statements and their arguments, run when it is chosen.
    Entry(Script, Vec<String>),
    /// The same, to offer more entries.
    Submenu(Script, Vec<String>),
    /// Known already (boot-loader-spec).
    Known(Boot),
}

/// Runs scripts.
pub(super) struct Machine<'a> {
    pub(super) volumes: &'a Volumes,
    /// The volume the configuration was found on.
    pub(super) home: usize,
    pub(super) state: State,
    pub(super) left: Rc<Left>,
    pub(super) depth: usize,
    pub(super) offers: Vec<Offer>,
    pub(super) boot: Boot,
}

impl<'a> Machine<'a> {
    pub(super) fn new(volumes: &'a Volumes, home: usize, state: State, left: &Rc<Left>) -> Self {
        let (left, boot) = (Rc::clone(left), Boot::default());
        Self { volumes, home, state, left, depth: 0, offers: Vec::new(), boot }
    }

    /// Runs one level deeper than what calls it.
    pub(super) fn run(&mut self, script: &Script) -> Result<Flow, Fault> {
        if self.depth == limits::NESTING_MAX {
            return Err(Fault::bound("nested blocks", limits::NESTING_MAX));
        }
        self.depth += 1;
        let mut flow = Flow::Next;
        for statement in script.iter() {
            flow = self.step(statement)?;
            if flow != Flow::Next {
                break;
            }
        }
        self.depth -= 1;
        Ok(flow)
    }

    fn step(&mut self, statement: &Statement) -> Result<Flow, Fault> {
        self.left.statement()?;
        match statement {
            Statement::Command { words, block } => self.command(words, block.as_ref()),
            Statement::If { arms, otherwise } => self.condition(arms, otherwise),
            Statement::Loop { until, condition, body } => self.repeat(*until, condition, body),
            Statement::For { name, words, body } => self.each(name, words, body),
            Statement::Function { name, body } => self.state.define(name, body).map(|()| Flow::Next),
        }
    }

    fn command(&mut self, words: &[Word], block: Option<&Script>) -> Result<Flow, Fault> {
        let mut arguments = self.expand_all(words)?;
        let negated = arguments.len() > 1 && arguments[0] == "!";
        arguments.drain(..usize::from(negated));
        if arguments.is_empty() {
            return Ok(Flow::Next);
        }
        let name = arguments.remove(0);
        let flow = match self.state.functions.get(&name).cloned() {
            Some(body) => self.call(&body, arguments)?,
            None => self.builtin(&name, &arguments, block)?,
        };
        if negated {
            self.finish(!self.succeeded())?;
        }
        Ok(flow)
    }

    fn expand_all(&self, words: &[Word]) -> Result<Vec<String>, Fault> {
        let (mut arguments, mut bytes) = (Vec::new(), 0);
        for word in words {
            let expanded = expand(word, &|name| self.value(name))?;
            bytes += expanded.iter().map(String::len).sum::<usize>();
            if bytes > limits::WORDS_BYTES_MAX {
                return Err(Fault::bound("bytes of a statement", limits::WORDS_BYTES_MAX));
            }
            arguments.extend(expanded);
        }
        Ok(arguments)
    }

    /// A variable, or what concerns the arguments.
    fn value(&self, name: &str) -> String {
        match name {
            "#" => self.state.arguments.len().to_string(),
            "*" | "@" => self.state.arguments.join(" "),
            name => self.state.get(name),
        }
    }

    fn call(&mut self, body: &Script, arguments: Vec<String>) -> Result<Flow, Fault> {
        let outer = std::mem::replace(&mut self.state.arguments, arguments);
        let flow = self.run(body)?;
        self.state.arguments = outer;
        Ok(if flow == Flow::Return { Flow::Next } else { flow })
    }

    fn condition(&mut self, arms: &[(Script, Script)], otherwise: &Script) -> Result<Flow, Fault> {
        for (condition, body) in arms {
            match self.run(condition)? {
                Flow::Next if self.succeeded() => return self.run(body),
                Flow::Next => {}
                flow => return Ok(flow),
            }
        }
        self.run(otherwise)
    }

    fn repeat(&mut self, until: bool, condition: &Script, body: &Script) -> Result<Flow, Fault> {
        loop {
            self.left.statement()?;
            match self.run(condition)? {
                Flow::Next if self.succeeded() != until => {}
                Flow::Next => return Ok(Flow::Next),
                flow => return Ok(flow),
            }
            match self.run(body)? {
                Flow::Next | Flow::Continue => {}
                Flow::Break => return Ok(Flow::Next),
                flow => return Ok(flow),
            }
        }
    }

    fn each(&mut self, name: &str, words: &[Word], body: &Script) -> Result<Flow, Fault> {
        for value in self.expand_all(words)? {
            self.left.statement()?;
            self.state.set(name, &value)?;
            match self.run(body)? {
                Flow::Next | Flow::Continue => {}
                Flow::Break => break,
                flow => return Ok(flow),
            }
        }
        Ok(Flow::Next)
    }

    fn succeeded(&self) -> bool {
        matches!(self.state.get("?").as_str(), "" | "0")
    }

    /// Notes how a command ended, where `$?` and conditions find it.
    pub(super) fn finish(&mut self, success: bool) -> Result<Flow, Fault> {
        self.state.set("?", if success { "0" } else { "1" })?;
        Ok(Flow::Next)
    }

    pub(super) fn offer(&mut self, offer: Offer) -> Result<(), Fault> {
        self.left.entry()?;
        self.offers.push(offer);
        Ok(())
    }
}
