//! Following a node's timeline.

use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use mycelium_ram::events::Stamped;

/// Reads lines that have been added since the last look; a line not yet finished is left for the next one.
#[derive(Debug)]
pub(crate) struct Tail {
    path: PathBuf,
    offset: u64,
}

impl Tail {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), offset: 0 }
    }

    pub(crate) fn new_events(&mut self) -> Vec<Stamped> {
        let Ok(mut file) = std::fs::File::open(&self.path) else { return Vec::new() };
        if file.seek(SeekFrom::Start(self.offset)).is_err() {
            return Vec::new();
        }
        let mut reader = BufReader::new(file);
        let (mut events, mut line) = (Vec::new(), String::new());
        while reader.read_line(&mut line).is_ok_and(|n| n > 0) && line.ends_with('\n') {
            self.offset += line.len() as u64;
            events.extend(serde_json::from_str::<Stamped>(&line));
            line.clear();
        }
        events
    }
}
