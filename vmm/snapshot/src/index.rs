//! Which page is where: the extents of a snapshot, sorted.

use crate::format::{ENTRY_BYTES, Entry};
use crate::limits::EXTENT_PAGES_MAX;

/// Pages of RAM that are next to each other, and their contents in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first_page: u64,
    pub(crate) pages: u64,
    /// First page of the contents, counted from the beginning of the data section.
    pub(crate) data_page: u64,
    pub(crate) sum: u64,
}

impl Run {
    pub(crate) fn end(&self) -> u64 {
        self.first_page + self.pages
    }
}

/// What the index says about a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Located {
    /// It is in this run.
    Data(Run),
    /// It is zero, and so are all pages from `first_page` up to `end`.
    Zeros { first_page: u64, end: u64 },
}

/// The sorted runs.
#[derive(Debug)]
pub(crate) struct Index {
    runs: Vec<Run>,
    ram_pages: u64,
}

impl Index {
    pub(crate) fn new(ram_pages: u64) -> Index {
        Index { runs: Vec::new(), ram_pages }
    }

    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    pub(crate) fn ram_pages(&self) -> u64 {
        self.ram_pages
    }

    /// Pages with contents.
    pub(crate) fn data_pages(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.data_page + run.pages)
    }

    /// Adds the next extent, or says what is wrong with it.
    pub(crate) fn push(&mut self, entry: Entry) -> Result<(), &'static str> {
        let pages = u64::from(entry.pages);
        if pages == 0 || pages > EXTENT_PAGES_MAX as u64 {
            return Err("an extent has no page or too many");
        }
        if entry.first_page < self.runs.last().map_or(0, Run::end) {
            return Err("extents overlap or are out of order");
        }
        if entry.first_page >= self.ram_pages || pages > self.ram_pages - entry.first_page {
            return Err("an extent lies outside RAM");
        }
        let data_page = self.data_pages();
        self.runs.push(Run { first_page: entry.first_page, pages, data_page, sum: entry.sum });
        Ok(())
    }

    /// Adds all extents of a piece of the index section, whose reserved fields must be zero.
    pub(crate) fn extend(&mut self, piece: &[u8]) -> Result<(), &'static str> {
        let (entries, rest) = piece.as_chunks::<ENTRY_BYTES>();
        if !rest.is_empty() {
            return Err("it ends within an extent");
        }
        for bytes in entries {
            let entry = Entry::decode(bytes);
            if entry.encode() != *bytes {
                return Err("a reserved field is not zero");
            }
            self.push(entry)?;
        }
        Ok(())
    }

    pub(crate) fn encode(&self) -> impl Iterator<Item = [u8; ENTRY_BYTES]> {
        self.runs.iter().map(|run| {
            let pages = u32::try_from(run.pages).unwrap_or(u32::MAX);
            Entry { first_page: run.first_page, pages, sum: run.sum }.encode()
        })
    }

    /// Where `page` is; for pages of RAM.
    pub(crate) fn locate(&self, page: u64) -> Located {
        let after = self.runs.partition_point(|run| run.first_page <= page);
        let before = after.checked_sub(1).map(|at| self.runs[at]);
        match before {
            Some(run) if page < run.end() => Located::Data(run),
            _ => Located::Zeros {
                first_page: before.map_or(0, |run| run.end()),
                end: self.runs.get(after).map_or(self.ram_pages, |run| run.first_page),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(first_page: u64, pages: u32) -> Entry {
        Entry { first_page, pages, sum: 0 }
    }

    #[test]
    fn every_page_is_located() {
        let mut index = Index::new(100);
        for (first, pages) in [(0, 2), (2, 1), (50, 10)] {
            index.push(entry(first, pages)).unwrap();
        }
        assert_eq!(index.data_pages(), 13);
        let run = |first_page, pages, data_page| Located::Data(Run { first_page, pages, data_page, sum: 0 });
        assert_eq!(index.locate(1), run(0, 2, 0));
        assert_eq!(index.locate(2), run(2, 1, 2));
        assert_eq!(index.locate(3), Located::Zeros { first_page: 3, end: 50 });
        assert_eq!(index.locate(59), run(50, 10, 3));
        assert_eq!(index.locate(60), Located::Zeros { first_page: 60, end: 100 });
        assert_eq!(Index::new(9).locate(4), Located::Zeros { first_page: 0, end: 9 });
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut index = Index::new(100);
        index.push(entry(10, 10)).unwrap();
        for (first, pages) in [(19, 1), (5, 2), (99, 2), (100, 1), (u64::MAX, 1), (30, 0), (30, 65)] {
            assert!(index.push(entry(first, pages)).is_err(), "{first} {pages}");
        }
        let mut bytes = entry(40, 1).encode();
        bytes[13] = 1;
        assert!(index.extend(&bytes).is_err());
        assert!(index.extend(&entry(40, 1).encode()[..23]).is_err());
        index.extend(&entry(40, 1).encode()).unwrap();
    }
}
