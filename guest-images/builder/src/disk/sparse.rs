//! Files with holes: where their data lies, and copies that keep the holes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::limits::PIECE_BYTES;
use crate::{ImageError, Observer};

/// Copies what is not zero from `source` to `at` in the file `to`, which has zeros or holes there.
pub(crate) fn copy_into(
    source: &Path,
    to: &File,
    at: u64,
    observer: &dyn Observer,
) -> Result<(), ImageError> {
    let from = File::open(source).map_err(ImageError::file("read", source))?;
    each_piece(&from, source, observer, |offset, piece| to.write_all_at(piece, at + offset))
}

/// Calls `take` with every piece of the file that is not all zeros, in order. Pieces are [`PIECE_BYTES`] long but the last.
pub(crate) fn each_piece(
    file: &File,
    path: &Path,
    observer: &dyn Observer,
    mut take: impl FnMut(u64, &[u8]) -> std::io::Result<()>,
) -> Result<(), ImageError> {
    let failed = |source| ImageError::File { action: "copy", path: path.to_owned(), source };
    let size = file.metadata().map_err(failed)?.len();
    let mut buffer = vec![0; PIECE_BYTES];
    let mut at = 0;
    while let Some(data) = next_data(file, at).map_err(failed)? {
        at = data - data % PIECE_BYTES as u64;
        let len = usize::try_from((size - at).min(PIECE_BYTES as u64)).unwrap_or(PIECE_BYTES);
        let piece = &mut buffer[..len];
        file.read_exact_at(piece, at).map_err(failed)?;
        if !is_zero(piece) {
            take(at, piece).map_err(failed)?;
        }
        at += len as u64;
        if observer.stopped() {
            return Err(ImageError::Interrupted);
        }
        observer.progress(at, size);
    }
    observer.progress(size, size);
    Ok(())
}

/// Where the next data is at or after `at`; none up to the end.
fn next_data(file: &File, at: u64) -> std::io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Folding has no way out in the middle, so that the compiler can take many bytes at once.
    bytes.chunks(256).all(|chunk| chunk.iter().fold(0, |seen, byte| seen | byte) == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::observer::Unwatched;

    #[test]
    fn holes_and_zeros_stay_holes() {
        let folder = tempfile::tempdir().unwrap();
        let (source, copy) = (folder.path().join("source"), folder.path().join("copy"));
        let file = File::create(&source).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"far", 40 << 20).unwrap();
        file.write_all_at(&[0; 1 << 20], 1 << 20).unwrap();
        let to = File::create(&copy).unwrap();
        to.set_len(64 << 20).unwrap();
        copy_into(&source, &to, 0, &Unwatched).unwrap();
        assert!(std::fs::read(&source).unwrap() == std::fs::read(&copy).unwrap());
        assert!(to.metadata().unwrap().blocks() * 512 <= 2 * PIECE_BYTES as u64);
    }
}
