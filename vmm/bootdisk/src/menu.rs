//! What a boot configuration offers, whatever language it is written in.

use crate::error::Fault;

/// Where a file is said to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The volume; nothing if the configuration names one that is not on this disk.
    pub(crate) volume: Option<usize>,
    /// The device as it was named, for messages.
    pub(crate) device: String,
    pub(crate) path: String,
}

/// What one entry boots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Boot {
    pub(crate) kernel: Option<Place>,
    pub(crate) initrds: Vec<Place>,
    pub(crate) cmdline: String,
}

/// One entry.
#[derive(Debug)]
pub(crate) struct Item {
    /// With the titles of the submenus it is in, joined by `>`.
    pub(crate) title: String,
    /// Other names it can be chosen by.
    pub(crate) ids: Vec<String>,
}

/// A list of entries, and what each boots once it is chosen.
pub(crate) trait Menu {
    /// All entries in order, those of submenus included.
    fn items(&self) -> &[Item];

    /// The entry the configuration boots by itself; an index into `items`.
    fn default_index(&self) -> usize;

    /// What the entry at `index` boots.
    fn boot(&self, index: usize) -> Result<Boot, Fault>;
}

/// Entries known in full when they are read.
#[derive(Debug, Default)]
pub(crate) struct Fixed {
    pub(crate) items: Vec<Item>,
    pub(crate) boots: Vec<Boot>,
    pub(crate) default: usize,
}

impl Fixed {
    pub(crate) fn push(&mut self, item: Item, boot: Boot) {
        self.items.push(item);
        self.boots.push(boot);
    }
}

impl Menu for Fixed {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn default_index(&self) -> usize {
        self.default
    }

    fn boot(&self, index: usize) -> Result<Boot, Fault> {
        Ok(self.boots.get(index).cloned().unwrap_or_default())
    }
}

/// The entry a caller asks for: by title or another name, or by its number in the list.
pub(crate) fn choose(items: &[Item], wanted: &str) -> Option<usize> {
    let named = |i: &Item| i.title == wanted || i.ids.iter().any(|id| id == wanted);
    items.iter().position(named).or_else(|| wanted.parse().ok().filter(|i| *i < items.len()))
}
