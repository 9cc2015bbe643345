//! Entry points for fuzzing.

use std::io::{self, Read};
use std::sync::Arc;

use crate::disk::{Disk, Slice};
use crate::{Options, bls, extlinux, find, grub, limits, table};

/// A small ext4 with a boot configuration: records of an offset (u32), a length (u16) and bytes; the rest is zero.
/// `tests/fixtures/README.md` says how it was made.
const TINY: &[u8] = include_bytes!("../tests/fixtures/tiny-ext4.sparse");

/// Bytes of the image `TINY` stands for.
const TINY_BYTES: usize = 256 << 10;

struct Memory(Vec<u8>);

impl Disk for Memory {
    fn bytes(&self) -> u64 {
        u64::try_from(self.0.len()).unwrap_or(u64::MAX)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|at| self.0.get(at..)?.get(..into.len()));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A disk whose begin is `data`; a backup GPT would lie in its last sectors.
pub fn fuzz_table(data: &[u8]) {
    table::fuzz(&Slice::whole(Arc::new(Memory(data.to_vec()))));
}

/// A `grub.cfg`.
pub fn fuzz_grub(data: &[u8]) {
    grub::fuzz(data);
}

/// A boot-loader-spec entry.
pub fn fuzz_bls(data: &[u8]) {
    bls::fuzz(&String::from_utf8_lossy(data));
}

/// An `extlinux.conf`.
pub fn fuzz_extlinux(data: &[u8]) {
    extlinux::fuzz(&String::from_utf8_lossy(data));
}

/// A small ext4 with `data` worked into it: each three bytes are a place (u16, counted over what is not zero) and the
/// byte to put there.
pub fn fuzz_ext4(data: &[u8]) {
    let mut image = tiny();
    let places: Vec<usize> = records().flat_map(|(at, bytes)| at..at + bytes.len()).collect();
    for patch in data.chunks_exact(3) {
        let place = usize::from(u16::from_le_bytes([patch[0], patch[1]])) % places.len();
        image[places[place]] = patch[2];
    }
    read_all(image);
}

fn records() -> impl Iterator<Item = (usize, &'static [u8])> {
    let mut rest = TINY;
    std::iter::from_fn(move || {
        let (head, body) = rest.split_first_chunk::<6>()?;
        let at = usize::try_from(u32::from_le_bytes([head[0], head[1], head[2], head[3]])).ok()?;
        let (bytes, left) = body.split_at_checked(usize::from(u16::from_le_bytes([head[4], head[5]])))?;
        rest = left;
        Some((at, bytes))
    })
}

fn tiny() -> Vec<u8> {
    let mut image = vec![0; TINY_BYTES];
    for (at, bytes) in records() {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    image
}

/// Finds what boots and reads it to its end.
fn read_all(image: Vec<u8>) {
    let Ok(mut plan) = find(Arc::new(Memory(image)), &Options::default()) else {
        return;
    };
    for file in std::iter::once(&mut plan.kernel).chain(&mut plan.initrds) {
        assert!(file.bytes <= limits::INITRD_BYTES_MAX);
        // A hole can be long; what it is made of is known after the first MiB.
        let _ = io::copy(&mut file.take(1 << 20), &mut io::sink());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_boots() {
        let plan = find(Arc::new(Memory(tiny())), &Options::default()).unwrap();
        assert_eq!((plan.cmdline.as_str(), plan.initrds.len()), ("root=LABEL=tiny ro", 1));
    }
}
