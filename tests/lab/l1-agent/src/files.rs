//! Reading and writing files of the host, a part at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use lab_agent::limits::BLOB_BYTES_MAX;
use lab_agent::protocol::{Answer, Refusal};

/// One part of a file from `offset` on; reads until the part is full because files under /proc and /sys come in pieces.
pub(crate) fn read_part(path: &str, offset: u64) -> Result<(Answer, Vec<u8>), Refusal> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut part = Vec::new();
        file.take(u64::from(BLOB_BYTES_MAX)).read_to_end(&mut part)?;
        Ok(part)
    };
    let part = read().map_err(|error| Refusal::new(path, error))?;
    Ok((Answer::FilePart { last: part.len() < BLOB_BYTES_MAX as usize }, part))
}

/// Writes a part at `offset`, creating the file and its folders.
pub(crate) fn write_part(path: &str, offset: u64, mode: u32, part: &[u8]) -> Result<(), Refusal> {
    let write = || -> io::Result<()> {
        if let Some(folder) = Path::new(path).parent() {
            fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().write(true).create(true).truncate(offset == 0).mode(mode).open(path)?;
        // Files under /proc and /sys cannot be sought in; the first part of any file needs no seeking.
        if offset == 0 { io::Write::write_all(&mut &file, part) } else { file.write_all_at(part, offset) }
    };
    write().map_err(|error| Refusal::new(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_join_into_the_file() {
        let folder = std::env::temp_dir().join(format!("lab-agent-files-{}", std::process::id()));
        let path = folder.join("a/b").to_string_lossy().into_owned();
        write_part(&path, 0, 0o600, b"hello ").unwrap();
        write_part(&path, 6, 0o600, b"world").unwrap();
        let (answer, part) = read_part(&path, 3).unwrap();
        assert_eq!((answer, part.as_slice()), (Answer::FilePart { last: true }, b"lo world".as_slice()));
        write_part(&path, 0, 0o600, b"x").unwrap();
        assert_eq!(read_part(&path, 0).unwrap().1, b"x");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_missing_file_is_named() {
        assert_eq!(read_part("/no/such/file", 0).unwrap_err().what, "/no/such/file");
    }
}
