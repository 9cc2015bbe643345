//! Words to statements.

use std::rc::Rc;

use super::lexer::{Placed, Token, Word, tokens};
use crate::error::Fault;
use crate::limits;

/// Statements in order; shared, as functions and entries outlive the script they stand in.
pub(super) type Script = Rc<[Statement]>;

/// One statement.
#[derive(Debug)]
pub(super) enum Statement {
    /// A command and its arguments, with a block after them (`menuentry`, `submenu`) or without.
    Command { words: Vec<Word>, block: Option<Script> },
    /// Conditions with what follows from each, then what follows from none.
    If { arms: Vec<(Script, Script)>, otherwise: Script },
    /// `while`, or `until`.
    Loop { until: bool, condition: Script, body: Script },
    /// `for NAME in WORDS`.
    For { name: String, words: Vec<Word>, body: Script },
    /// `function NAME { .. }`.
    Function { name: String, body: Script },
}

/// Parses a whole script.
pub(super) fn parse(script: &str) -> Result<Script, Fault> {
    let mut parser = Parser { tokens: tokens(script)?, at: 0, depth: 0 };
    let statements = parser.statements(&[])?;
    match parser.peek() {
        None => Ok(statements),
        Some(_) => Err(parser.wrong("a block or condition is closed that was not opened")),
    }
}

struct Parser {
    tokens: Vec<Placed>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    fn peek_keyword(&self) -> Option<&str> {
        match self.peek() {
            Some(Token::Word(word)) => word.bare(),
            _ => None,
        }
    }

    fn wrong(&self, reason: &'static str) -> Fault {
        self.wrong_at(self.at, reason)
    }

    fn wrong_at(&self, token: usize, reason: &'static str) -> Fault {
        let at = token.min(self.tokens.len().saturating_sub(1));
        Fault::Syntax { line: self.tokens.get(at).map_or(1, |(_, line)| *line), reason }
    }

    fn skip_ends(&mut self) {
        while self.peek() == Some(&Token::End) {
            self.at += 1;
        }
    }

    /// Takes `keyword`, which what began at `begin` needs.
    fn expect(&mut self, begin: usize, keyword: &str, reason: &'static str) -> Result<(), Fault> {
        self.skip_ends();
        if self.peek_keyword() != Some(keyword) {
            return Err(self.wrong_at(begin, reason));
        }
        self.at += 1;
        Ok(())
    }

    /// Up to one of `closing`, a `}` or the end, none of which is taken.
    fn statements(&mut self, closing: &[&str]) -> Result<Script, Fault> {
        if self.depth == limits::NESTING_MAX {
            return Err(Fault::bound("nested blocks", limits::NESTING_MAX));
        }
        self.depth += 1;
        let mut found = Vec::new();
        loop {
            self.skip_ends();
            match self.peek() {
                None | Some(Token::Close) => break,
                _ if self.peek_keyword().is_some_and(|word| closing.contains(&word)) => break,
                _ => found.push(self.statement()?),
            }
        }
        self.depth -= 1;
        Ok(found.into())
    }

    fn statement(&mut self) -> Result<Statement, Fault> {
        let keyword = self.peek_keyword().unwrap_or_default().to_owned();
        match keyword.as_str() {
            "if" => self.condition(),
            "while" | "until" => self.repeat(keyword == "until"),
            "for" => self.each(),
            "function" => self.function(),
            "then" | "elif" | "else" | "fi" | "do" | "done" => {
                Err(self.wrong("a keyword stands where none can"))
            }
            _ => self.command(),
        }
    }

    fn condition(&mut self) -> Result<Statement, Fault> {
        let (begin, mut arms, mut otherwise) = (self.at, Vec::new(), Script::from([]));
        loop {
            self.at += 1;
            let condition = self.statements(&["then"])?;
            self.expect(begin, "then", "an if has no then")?;
            arms.push((condition, self.statements(&["elif", "else", "fi"])?));
            if self.peek_keyword() != Some("elif") {
                break;
            }
        }
        if self.peek_keyword() == Some("else") {
            self.at += 1;
            otherwise = self.statements(&["fi"])?;
        }
        self.expect(begin, "fi", "an if has no fi")?;
        Ok(Statement::If { arms, otherwise })
    }

    fn repeat(&mut self, until: bool) -> Result<Statement, Fault> {
        let begin = self.at;
        self.at += 1;
        let condition = self.statements(&["do"])?;
        let body = self.repeated(begin)?;
        Ok(Statement::Loop { until, condition, body })
    }

    fn repeated(&mut self, begin: usize) -> Result<Script, Fault> {
        self.expect(begin, "do", "a loop has no do")?;
        let body = self.statements(&["done"])?;
        self.expect(begin, "done", "a loop has no done")?;
        Ok(body)
    }

    fn each(&mut self) -> Result<Statement, Fault> {
        let begin = self.at;
        self.at += 1;
        let name =
            self.peek_keyword().map(str::to_owned).ok_or_else(|| self.wrong("a for has no variable"))?;
        self.at += 1;
        self.expect(begin, "in", "a for has no in")?;
        let words = self.words();
        let body = self.repeated(begin)?;
        Ok(Statement::For { name, words, body })
    }

    fn function(&mut self) -> Result<Statement, Fault> {
        self.at += 1;
        let name =
            self.peek_keyword().map(str::to_owned).ok_or_else(|| self.wrong("a function has no name"))?;
        self.at += 1;
        self.skip_ends();
        let body = self.block()?.ok_or_else(|| self.wrong("a function has no body"))?;
        Ok(Statement::Function { name, body })
    }

    fn command(&mut self) -> Result<Statement, Fault> {
        let words = self.words();
        if words.is_empty() {
            return Err(self.wrong("a block belongs to no command"));
        }
        Ok(Statement::Command { words, block: self.block()? })
    }

    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            words.push(word.clone());
            self.at += 1;
        }
        words
    }

    fn block(&mut self) -> Result<Option<Script>, Fault> {
        if self.peek() != Some(&Token::Open) {
            return Ok(None);
        }
        let begin = self.at;
        self.at += 1;
        let body = self.statements(&[])?;
        if self.peek() != Some(&Token::Close) {
            return Err(self.wrong_at(begin, "a { is not closed"));
        }
        self.at += 1;
        Ok(Some(body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_nest_and_keywords_are_words_elsewhere() {
        let script =
            parse("if [ a = if ]; then\n if b; then c; else d then; fi\nelif e; then f; fi; echo fi")
                .unwrap();
        assert!(matches!(&script[0], Statement::If { arms, .. } if arms.len() == 2));
        assert!(matches!(&script[1], Statement::Command { words, .. } if words.len() == 2));
    }

    #[test]
    fn a_block_belongs_to_the_command_before_it() {
        let script =
            parse("menuentry 'x' --class y {\n linux /k\n initrd /i\n}\nfunction f {\n g\n}").unwrap();
        assert!(
            matches!(&script[0], Statement::Command { words, block: Some(b) } if words.len() == 4 && b.len() == 2)
        );
        assert!(matches!(&script[1], Statement::Function { name, .. } if name == "f"));
    }

    #[test]
    fn what_is_not_closed_or_not_opened_is_an_error_with_its_line() {
        for (script, line) in
            [("if a; then b", 1), ("\n}", 2), ("\nx {\n\n", 2), ("fi", 1), ("for 'a' in b", 1)]
        {
            let error = parse(script).unwrap_err();
            assert!(matches!(error, Fault::Syntax { line: l, .. } if l == line), "{script}: {error}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let script = "if a; then ".repeat(limits::NESTING_MAX * 100);
        assert!(matches!(parse(&script), Err(Fault::Bound { what: "nested blocks", .. })));
    }
}
