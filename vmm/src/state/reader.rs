//! Reading a state that came from elsewhere: every length is checked before it is believed.

use zerocopy::FromBytes;

use super::{FORMAT_VERSION, HEADER_BYTES, MAGIC, SECTION_HEADER_BYTES, SectionId, StateError};
use crate::limits::{STATE_BYTES_MAX, STATE_SECTIONS_MAX};

/// The sections of one state, not yet looked into.
#[derive(Debug)]
pub(crate) struct Sections<'a>(Vec<Section<'a>>);

#[derive(Debug)]
struct Section<'a> {
    id: SectionId,
    instance: u16,
    payload: &'a [u8],
    taken: bool,
}

impl<'a> Sections<'a> {
    /// Splits `state` into sections.
    pub(crate) fn parse(state: &'a [u8]) -> Result<Sections<'a>, StateError> {
        if state.len() > STATE_BYTES_MAX {
            return Err(StateError::TooLarge { bound: STATE_BYTES_MAX, unit: "bytes" });
        }
        let count = header(state)?;
        if count > STATE_SECTIONS_MAX {
            return Err(StateError::TooLarge { bound: STATE_SECTIONS_MAX, unit: "sections" });
        }
        let mut sections = Vec::with_capacity(count);
        let mut rest = &state[HEADER_BYTES..];
        for _ in 0..count {
            let section;
            (section, rest) = split_section(rest, state.len())?;
            sections.push(section);
        }
        if !rest.is_empty() {
            return Err(StateError::Length {
                said: (state.len() - rest.len()) as u64,
                got: state.len() as u64,
            });
        }
        let parsed = Sections(sections);
        parsed.refuse_duplicates()?;
        Ok(parsed)
    }

    /// The payload of one section, which must be there.
    pub(crate) fn take(&mut self, id: SectionId, instance: u16) -> Result<Fields<'a>, StateError> {
        let found = self.0.iter_mut().find(|s| s.id == id && s.instance == instance);
        let Some(section) = found else {
            return Err(StateError::Mismatch { section: id, instance, problem: "missing" });
        };
        section.taken = true;
        Ok(Fields { section: id, rest: section.payload })
    }

    /// Refuses sections nobody took.
    pub(crate) fn finish(self) -> Result<(), StateError> {
        match self.0.iter().find(|s| !s.taken) {
            None => Ok(()),
            Some(extra) => Err(StateError::Mismatch {
                section: extra.id,
                instance: extra.instance,
                problem: "for a device this machine does not have",
            }),
        }
    }

    fn refuse_duplicates(&self) -> Result<(), StateError> {
        for (index, section) in self.0.iter().enumerate() {
            if self.0[..index].iter().any(|s| s.id == section.id && s.instance == section.instance) {
                return Err(StateError::Duplicate { section: section.id, instance: section.instance });
            }
        }
        Ok(())
    }
}

fn header(state: &[u8]) -> Result<usize, StateError> {
    let Some(header) = state.first_chunk::<HEADER_BYTES>() else { return Err(StateError::BadMagic) };
    if !header.starts_with(MAGIC) {
        return Err(StateError::BadMagic);
    }
    let found = u16::from_le_bytes([header[8], header[9]]);
    if found != FORMAT_VERSION {
        return Err(StateError::FormatVersion { found });
    }
    let said = u64::from(u32::from_le_bytes([header[12], header[13], header[14], header[15]]));
    if said != state.len() as u64 {
        return Err(StateError::Length { said, got: state.len() as u64 });
    }
    Ok(usize::from(u16::from_le_bytes([header[10], header[11]])))
}

fn split_section(rest: &[u8], whole: usize) -> Result<(Section<'_>, &[u8]), StateError> {
    let cut = |said: u64| StateError::Length { said, got: whole as u64 };
    let Some((header, rest)) = rest.split_first_chunk::<SECTION_HEADER_BYTES>() else {
        return Err(cut((whole + SECTION_HEADER_BYTES) as u64));
    };
    let [id, version, instance, reserved] =
        [0, 2, 4, 6].map(|at| u16::from_le_bytes([header[at], header[at + 1]]));
    let Some(id) = SectionId::from_wire(id) else { return Err(StateError::UnknownSection { id }) };
    if version != id.version() {
        return Err(StateError::SectionVersion { section: id, found: version, known: id.version() });
    }
    if reserved != 0 {
        let value = u64::from(reserved);
        return Err(StateError::Invalid { section: id, field: "reserved", value, reason: "it must be zero" });
    }
    let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    let bytes = usize::try_from(length).unwrap_or(usize::MAX);
    let Some((payload, rest)) = rest.split_at_checked(bytes) else {
        return Err(cut(whole as u64 + u64::from(length)));
    };
    Ok((Section { id, instance, payload, taken: false }, rest))
}

/// Reads the payload of one section front to back.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    section: SectionId,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let Some((head, rest)) = self.rest.split_first_chunk::<N>() else { return Err(self.cut_short()) };
        self.rest = rest;
        Ok(*head)
    }

    fn cut_short(&self) -> StateError {
        StateError::Shape { section: self.section, problem: "cut short" }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, StateError> {
        Ok(self.bytes::<1>()?[0])
    }

    pub(crate) fn bool(&mut self, field: &'static str) -> Result<bool, StateError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.invalid(field, u64::from(other), "it must be 0 or 1")),
        }
    }

    pub(crate) fn u16(&mut self) -> Result<u16, StateError> {
        Ok(u16::from_le_bytes(self.bytes()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, StateError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, StateError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    pub(crate) fn i64(&mut self) -> Result<i64, StateError> {
        Ok(i64::from_le_bytes(self.bytes()?))
    }

    /// A count that must not exceed `max`.
    pub(crate) fn count(&mut self, field: &'static str, max: usize) -> Result<usize, StateError> {
        let count = self.u32()?;
        match usize::try_from(count) {
            Ok(n) if n <= max => Ok(n),
            _ => Err(self.invalid(field, u64::from(count), "more than a machine can have")),
        }
    }

    /// A length, then at most `max` bytes.
    pub(crate) fn blob(&mut self, field: &'static str, max: usize) -> Result<&'a [u8], StateError> {
        let length = self.count(field, max)?;
        let Some((head, rest)) = self.rest.split_at_checked(length) else { return Err(self.cut_short()) };
        self.rest = rest;
        Ok(head)
    }

    /// A structure of KVM's ABI.
    pub(crate) fn abi<T: FromBytes>(&mut self) -> Result<T, StateError> {
        let Ok((value, rest)) = T::read_from_prefix(self.rest) else { return Err(self.cut_short()) };
        self.rest = rest;
        Ok(value)
    }

    /// An error about a field of this section.
    pub(crate) fn invalid(&self, field: &'static str, value: u64, reason: &'static str) -> StateError {
        StateError::Invalid { section: self.section, field, value, reason }
    }

    /// Ends the section: nothing may be left.
    pub(crate) fn finish(self) -> Result<(), StateError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(StateError::Shape { section: self.section, problem: "longer than its contents" })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::super::StateWriter;
    use super::*;

    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = StateWriter::new(&mut out);
        let Ok(()) = writer.section(SectionId::Vcpu, 1, |p| {
            p.u64(7);
            p.blob(b"abc");
            Ok::<(), Infallible>(())
        });
        let Ok(()) = writer.section(SectionId::Cmos, 0, |p| {
            p.bool(true);
            Ok::<(), Infallible>(())
        });
        writer.finish();
        out
    }

    #[test]
    fn what_was_written_is_read_back_in_any_order() {
        let state = sample();
        let mut sections = Sections::parse(&state).unwrap();
        let mut cmos = sections.take(SectionId::Cmos, 0).unwrap();
        assert!(cmos.bool("flag").unwrap());
        cmos.finish().unwrap();
        let mut vcpu = sections.take(SectionId::Vcpu, 1).unwrap();
        assert_eq!((vcpu.u64().unwrap(), vcpu.blob("text", 3).unwrap()), (7, &b"abc"[..]));
        vcpu.finish().unwrap();
        sections.finish().unwrap();
    }

    #[test]
    fn errors_name_the_section_at_fault() {
        let state = sample();
        let mut sections = Sections::parse(&state).unwrap();
        let missing = sections.take(SectionId::Serial, 0).unwrap_err();
        assert!(missing.to_string().contains("section serial of instance 0 is missing"), "{missing}");
        let untaken = sections.finish().unwrap_err();
        assert!(matches!(untaken, StateError::Mismatch { section: SectionId::Vcpu, instance: 1, .. }));
        let mut sections = Sections::parse(&state).unwrap();
        let mut vcpu = sections.take(SectionId::Vcpu, 1).unwrap();
        vcpu.u64().unwrap();
        assert!(matches!(vcpu.blob("text", 2), Err(StateError::Invalid { field: "text", value: 3, .. })));
    }

    #[test]
    fn every_truncation_is_refused() {
        let state = sample();
        for length in 0..state.len() {
            assert!(Sections::parse(&state[..length]).is_err(), "cut to {length}");
        }
    }

    #[test]
    fn a_section_given_twice_is_refused() {
        let mut out = Vec::new();
        let mut writer = StateWriter::new(&mut out);
        for _ in 0..2 {
            writer.section(SectionId::Cmos, 0, |_| Ok::<(), Infallible>(())).unwrap();
        }
        writer.finish();
        assert_eq!(
            Sections::parse(&out).unwrap_err(),
            StateError::Duplicate { section: SectionId::Cmos, instance: 0 }
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), flip in 0usize..60) {
            let _ = Sections::parse(&bytes);
            let mut state = sample();
            let at = flip % state.len();
            state[at] ^= bytes.first().copied().unwrap_or(1);
            if let Ok(mut sections) = Sections::parse(&state) {
                let _ = sections.take(SectionId::Vcpu, 1).and_then(|mut f| f.u64().and_then(|_| f.blob("text", 8).map(|_| ())));
            }
        }
    }
}
