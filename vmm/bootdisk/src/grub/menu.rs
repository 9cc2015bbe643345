//! The entries a `grub.cfg` offers, those of its submenus among them.

use std::rc::Rc;

use super::env::State;
use super::machine::{Left, Machine, Offer, Offered};
use super::parser::{Script, parse};
use crate::error::Fault;
use crate::menu::{Boot, Item, Menu};
use crate::volume::Volumes;

/// A script that ran, waiting for a choice.
pub(crate) struct GrubMenu<'a> {
    volumes: &'a Volumes,
    home: usize,
    left: Rc<Left>,
    items: Vec<Item>,
    behind: Vec<Behind>,
    default: usize,
}

/// What runs when an entry is chosen.
enum Behind {
    Script { body: Script, arguments: Vec<String>, state: Rc<State> },
    Known(Boot),
}

/// The entries as they nest, for defaults that name a way through submenus.
struct Node {
    title: String,
    id: Option<String>,
    what: Nested,
}

enum Nested {
    /// Index of the entry in the flat list.
    Leaf(usize),
    Menu(Vec<Node>),
}

impl<'a> GrubMenu<'a> {
    /// Runs the script found at `path` of volume `home`.
    pub(crate) fn load(volumes: &'a Volumes, home: usize, path: &str, script: &[u8]) -> Result<Self, Fault> {
        let device = volumes.0.get(home).map_or_else(|| "hd0".to_owned(), |volume| volume.device());
        let left = Left::new();
        let mut machine = Machine::new(volumes, home, State::new(&device, path), &left);
        machine.run(&parse(&String::from_utf8_lossy(script))?)?;
        let (items, behind) = (Vec::new(), Vec::new());
        let mut menu = Self { volumes, home, left, items, behind, default: 0 };
        let (state, offers, boot) = (Rc::new(machine.state), machine.offers, machine.boot);
        if offers.is_empty() && boot.kernel.is_some() {
            menu.add("commands of the script".to_owned(), None, Behind::Known(boot));
        }
        let nodes = menu.flatten(offers, &state, "", 0)?;
        menu.default = chosen(&nodes, &state.get("default")).unwrap_or(0);
        Ok(menu)
    }

    fn add(&mut self, title: String, id: Option<String>, behind: Behind) -> usize {
        self.items.push(Item { title, ids: id.into_iter().collect() });
        self.behind.push(behind);
        self.items.len() - 1
    }

    fn flatten(
        &mut self,
        offers: Vec<Offer>,
        state: &Rc<State>,
        within: &str,
        depth: usize,
    ) -> Result<Vec<Node>, Fault> {
        let mut nodes = Vec::new();
        for Offer { title, id, what } in offers {
            let full = format!("{within}{title}");
            let what = match what {
                Offered::Submenu(body, arguments) => self.submenu(&body, arguments, state, &full, depth)?,
                Offered::Known(boot) => Nested::Leaf(self.add(full, id.clone(), Behind::Known(boot))),
                Offered::Entry(body, arguments) => {
                    let behind = Behind::Script { body, arguments, state: Rc::clone(state) };
                    Nested::Leaf(self.add(full, id.clone(), behind))
                }
            };
            nodes.push(Node { title, id, what });
        }
        Ok(nodes)
    }

    fn submenu(
        &mut self,
        body: &Script,
        arguments: Vec<String>,
        state: &State,
        title: &str,
        depth: usize,
    ) -> Result<Nested, Fault> {
        let state = state.with_arguments(arguments);
        let mut machine = Machine::new(self.volumes, self.home, state, &self.left);
        // A submenu that offers itself again would go on for ever.
        machine.depth = depth + 1;
        machine.run(body)?;
        let (state, offers) = (Rc::new(machine.state), machine.offers);
        Ok(Nested::Menu(self.flatten(offers, &state, &format!("{title}>"), depth + 1)?))
    }
}

impl Menu for GrubMenu<'_> {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn default_index(&self) -> usize {
        self.default
    }

    fn boot(&self, index: usize) -> Result<Boot, Fault> {
        match self.behind.get(index) {
            None => Ok(Boot::default()),
            Some(Behind::Known(boot)) => Ok(boot.clone()),
            Some(Behind::Script { body, arguments, state }) => {
                let state = state.with_arguments(arguments.clone());
                let mut machine = Machine::new(self.volumes, self.home, state, &self.left);
                machine.run(body)?;
                Ok(machine.boot)
            }
        }
    }
}

/// The entry `default` names: a number, a title or an id, each followed by `>` and what is meant within a submenu. What is
/// not found means the first, as in GRUB.
fn chosen(nodes: &[Node], default: &str) -> Option<usize> {
    let (head, rest) = split_path(default);
    let numbered = head.parse().ok().and_then(|number: usize| nodes.get(number));
    let named = || nodes.iter().find(|n| n.title == head || n.id.as_deref() == Some(head.as_str()));
    match &numbered.or_else(named).or(nodes.first())?.what {
        Nested::Leaf(index) => Some(*index),
        Nested::Menu(inner) => chosen(inner, rest),
    }
}

/// Splits at the first `>`; a doubled one is part of a title.
fn split_path(path: &str) -> (String, &str) {
    let (mut head, mut rest) = (String::new(), path);
    while let Some((before, after)) = rest.split_once('>') {
        head.push_str(before);
        match after.strip_prefix('>') {
            Some(doubled) => {
                head.push('>');
                rest = doubled;
            }
            None => return (head, after),
        }
    }
    head.push_str(rest);
    (head, "")
}
