//! Writing a state: straight into the caller's buffer, which keeps its capacity from epoch to epoch.

use zerocopy::{Immutable, IntoBytes};

use super::{FORMAT_VERSION, HEADER_BYTES, MAGIC, SECTION_HEADER_BYTES, SectionId};

/// Appends one state to a buffer. [`StateWriter::finish`] completes it.
#[derive(Debug)]
pub(crate) struct StateWriter<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    sections: u16,
}

impl<'a> StateWriter<'a> {
    /// Begins a state at the end of `out`.
    pub(crate) fn new(out: &'a mut Vec<u8>) -> StateWriter<'a> {
        let start = out.len();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&[0; HEADER_BYTES - 10]);
        StateWriter { out, start, sections: 0 }
    }

    /// Adds a section whose payload `fill` writes.
    pub(crate) fn section<E>(
        &mut self,
        id: SectionId,
        instance: u16,
        fill: impl FnOnce(&mut Payload<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.sections += 1;
        for field in [id as u16, id.version(), instance, 0] {
            self.out.extend_from_slice(&field.to_le_bytes());
        }
        let length_at = self.out.len();
        self.out.extend_from_slice(&[0; SECTION_HEADER_BYTES - 8]);
        fill(&mut Payload(self.out))?;
        let length = length_u32(self.out.len() - length_at - 4);
        self.out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }

    /// Fills in the header.
    pub(crate) fn finish(self) {
        let length = length_u32(self.out.len() - self.start);
        let header = &mut self.out[self.start..];
        header[10..12].copy_from_slice(&self.sections.to_le_bytes());
        header[12..16].copy_from_slice(&length.to_le_bytes());
    }
}

fn length_u32(length: usize) -> u32 {
    u32::try_from(length).expect("a machine state is far below 4 GiB")
}

/// The payload of one section.
#[derive(Debug)]
pub(crate) struct Payload<'a>(&'a mut Vec<u8>);

impl Payload<'_> {
    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn i64(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// A length, then the bytes.
    pub(crate) fn blob(&mut self, bytes: &[u8]) {
        self.u32(length_u32(bytes.len()));
        self.0.extend_from_slice(bytes);
    }

    /// A structure of KVM's ABI as it lies in memory; its layout is frozen by the kernel.
    pub(crate) fn abi<T: IntoBytes + Immutable>(&mut self, value: &T) {
        self.0.extend_from_slice(value.as_bytes());
    }
}
