//! The file, byte by byte.
//!
//! ```text
//!   header    1 page    magic, version, build that wrote it                             checksum
//!   metadata  pages     JSON of the caller, padded with zeros      (checksum in the footer)
//!   state     pages     machine state, padded with zeros           (checksum in the footer)
//!   data      pages     page contents in the order of the index    (checksums in the index)
//!   index     pages     24 bytes an extent, padded with zeros      (checksum in the footer)
//!   footer    1 page    magic, file length, length and checksum of every section        checksum
//! ```
//! Little-endian throughout; all checksums are xxh3-64. Every section begins on a page boundary and its place follows
//! from the lengths before it, so no offset in the file can be wrong. The footer is written last: a file without one was
//! never finished, or was cut. The header page keeps its layout in all versions, so that any build can say which
//! build wrote a file.

use xxhash_rust::xxh3::xxh3_64;

use crate::limits::{PAGE_BYTES, WRITER_BYTES_MAX};

/// Version this build writes, and the only one it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Bytes of one extent in the index.
pub(crate) const ENTRY_BYTES: usize = 24;

const HEADER_MAGIC: &[u8; 8] = b"ENDOSNAP";
const FOOTER_MAGIC: &[u8; 8] = b"ENDODONE";
const PAGE: u64 = PAGE_BYTES as u64;

/// One page of the file that carries its own checksum in its last eight bytes.
pub(crate) type Block = [u8; PAGE_BYTES];

/// `bytes` rounded up to whole pages.
pub(crate) const fn padded(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE) * PAGE
}

/// Why a block is not what it should be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BlockError {
    /// It is something else.
    Foreign,
    /// It is, but a bit of it changed.
    Checksum,
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at_checked(bytes).unwrap_or((self.0, &[]));
        self.0 = rest;
        head
    }

    fn u32(&mut self) -> u32 {
        self.take(4).try_into().map_or(0, u32::from_le_bytes)
    }

    fn u64(&mut self) -> u64 {
        self.take(8).try_into().map_or(0, u64::from_le_bytes)
    }
}

fn seal(magic: &[u8; 8], fields: &[&[u8]]) -> Block {
    let mut block = [0; PAGE_BYTES];
    let mut at = 0;
    for field in std::iter::once(&magic.as_slice()).chain(fields) {
        block[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    }
    let (body, sum) = block.split_at_mut(PAGE_BYTES - 8);
    sum.copy_from_slice(&xxh3_64(body).to_le_bytes());
    block
}

fn unseal<'a>(magic: &[u8; 8], block: &'a Block) -> Result<Fields<'a>, BlockError> {
    let (body, sum) = block.split_at(PAGE_BYTES - 8);
    if !body.starts_with(magic) {
        return Err(BlockError::Foreign);
    }
    if xxh3_64(body).to_le_bytes() != sum {
        return Err(BlockError::Checksum);
    }
    Ok(Fields(&body[magic.len()..]))
}

/// The first page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) version: u32,
    /// Name and version of the build that wrote the file.
    pub(crate) writer: String,
}

impl Header {
    pub(crate) fn of_this_build() -> Header {
        Header { version: FORMAT_VERSION, writer: format!("endophyte {}", env!("CARGO_PKG_VERSION")) }
    }

    pub(crate) fn encode(&self) -> Block {
        let mut writer = [0; WRITER_BYTES_MAX];
        let length = self.writer.len().min(WRITER_BYTES_MAX);
        writer[..length].copy_from_slice(&self.writer.as_bytes()[..length]);
        seal(HEADER_MAGIC, &[&self.version.to_le_bytes(), &writer])
    }

    pub(crate) fn decode(block: &Block) -> Result<Header, BlockError> {
        let mut fields = unseal(HEADER_MAGIC, block)?;
        let version = fields.u32();
        let writer = fields.take(WRITER_BYTES_MAX);
        let text = String::from_utf8_lossy(writer);
        // It is shown to people: nothing in it may steer a terminal.
        let writer = text.trim_end_matches('\0').chars().filter(|c| !c.is_control()).collect();
        Ok(Header { version, writer })
    }
}

/// Length and checksum of a section; the checksum covers its padding too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) bytes: u64,
    pub(crate) sum: u64,
}

/// The last page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) file_bytes: u64,
    /// Ties header and footer together.
    pub(crate) header_sum: u64,
    pub(crate) ram_pages: u64,
    pub(crate) data_pages: u64,
    pub(crate) metadata: Section,
    pub(crate) state: Section,
    pub(crate) index: Section,
}

impl Footer {
    pub(crate) fn encode(&self) -> Block {
        let sections = [self.metadata, self.state, self.index].map(|s| [s.bytes, s.sum]);
        let first = [self.file_bytes, self.header_sum, self.ram_pages, self.data_pages];
        let words: Vec<u8> =
            first.iter().chain(sections.as_flattened()).flat_map(|word| word.to_le_bytes()).collect();
        seal(FOOTER_MAGIC, &[&words])
    }

    pub(crate) fn decode(block: &Block) -> Result<Footer, BlockError> {
        let mut fields = unseal(FOOTER_MAGIC, block)?;
        let mut word = || fields.u64();
        let [file_bytes, header_sum, ram_pages, data_pages] = std::array::from_fn(|_| word());
        let [metadata, state, index] = std::array::from_fn(|_| Section { bytes: word(), sum: word() });
        Ok(Footer { file_bytes, header_sum, ram_pages, data_pages, metadata, state, index })
    }

    /// Where the sections are. Only for lengths within their limits.
    pub(crate) fn places(&self) -> Places {
        let metadata = PAGE;
        let state = metadata + padded(self.metadata.bytes);
        let data = state + padded(self.state.bytes);
        let index = data + self.data_pages * PAGE;
        Places { metadata, state, data, index, footer: index + padded(self.index.bytes) }
    }
}

/// Offsets of the sections in the file, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) metadata: u64,
    pub(crate) state: u64,
    pub(crate) data: u64,
    pub(crate) index: u64,
    pub(crate) footer: u64,
}

/// One extent as the index has it: pages of RAM next to each other, none of them zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) first_page: u64,
    pub(crate) pages: u32,
    pub(crate) sum: u64,
}

impl Entry {
    pub(crate) fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&self.first_page.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.pages.to_le_bytes());
        bytes[16..].copy_from_slice(&self.sum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; ENTRY_BYTES]) -> Entry {
        let mut fields = Fields(bytes);
        let (first_page, pages) = (fields.u64(), fields.u32());
        fields.take(4);
        Entry { first_page, pages, sum: fields.u64() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_footer_survive_the_way_and_every_flipped_bit_is_seen() {
        let header = Header { version: 7, writer: "endophyte 9.9\u{1b}[2J".into() };
        assert_eq!(
            Header::decode(&header.encode()),
            Ok(Header { version: 7, writer: "endophyte 9.9[2J".into() })
        );
        let section = |n| Section { bytes: n, sum: n + 1 };
        let footer = Footer {
            file_bytes: 1,
            header_sum: 2,
            ram_pages: 3,
            data_pages: 4,
            metadata: section(5),
            state: section(7),
            index: section(9),
        };
        let block = footer.encode();
        assert_eq!(Footer::decode(&block), Ok(footer));
        for at in 0..PAGE_BYTES {
            let mut damaged = block;
            damaged[at] ^= 1;
            let expected = if at < 8 { BlockError::Foreign } else { BlockError::Checksum };
            assert_eq!(Footer::decode(&damaged), Err(expected), "byte {at}");
        }
    }

    #[test]
    fn sections_lie_on_page_boundaries_one_after_the_other() {
        let footer = Footer {
            data_pages: 3,
            metadata: Section { bytes: 1, sum: 0 },
            state: Section { bytes: 4097, sum: 0 },
            index: Section { bytes: 0, sum: 0 },
            ..Footer::default()
        };
        let [metadata, state, data, index] = [1, 2, 4, 7].map(|page| page * 4096);
        assert_eq!(footer.places(), Places { metadata, state, data, index, footer: index });
    }
}
