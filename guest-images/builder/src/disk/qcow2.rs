//! qcow2 images, by way of imago: only clusters that are not zero are written.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::sparse::{each_piece, is_zero};
use crate::limits::PIECE_BYTES;
use crate::{ImageError, Observer};
use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Mapping, Storage as _,
    StorageOpenOptions,
};

/// Where the header says how long it is.
const HEADER_LENGTH_AT: u64 = 100;

/// Writes the raw image `source` as qcow2 to `target`, a file that exists; what was in it is lost.
pub(crate) fn from_raw(source: &Path, target: &Path, observer: &dyn Observer) -> Result<(), ImageError> {
    let file = File::open(source).map_err(ImageError::file("read", source))?;
    let size = file.metadata().map_err(ImageError::file("read", source))?.len();
    let failed = |source| ImageError::File { action: "write", path: target.to_owned(), source };
    let image = create(target, size).map_err(failed)?;
    each_piece(&file, source, observer, |at, piece| image.write(piece, at))?;
    image.flush().map_err(failed)?;
    drop(image);
    forget_feature_names(target).map_err(failed)
}

/// imago lists the names of the format's optional features behind the header, in an order that changes from run to run. They
/// are for error messages only; without them the same disk gives the same bytes.
fn forget_feature_names(target: &Path) -> std::io::Result<()> {
    let file = File::options().read(true).write(true).open(target)?;
    let mut header_length = [0; 4];
    file.read_exact_at(&mut header_length, HEADER_LENGTH_AT)?;
    let end = usize::try_from(u32::from_be_bytes(header_length)).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
    // All zeros read as the end of what follows the header, which has its cluster to itself.
    file.write_all_at(&vec![0; PIECE_BYTES - end], end as u64)
}

/// Writes the qcow2 image `source` as raw to `target`, an empty file.
pub(crate) fn to_raw(source: &Path, target: &File, observer: &dyn Observer) -> Result<(), ImageError> {
    let image = Reader::open(source)?;
    let failed = |error| ImageError::File { action: "copy", path: source.to_owned(), source: error };
    let size = image.size();
    target.set_len(size).map_err(failed)?;
    let mut at = 0;
    while at < size {
        let (zero, len) = image.extent(at, size - at)?;
        if !zero {
            image.copy(at, len, target).map_err(failed)?;
        }
        at += len;
        if observer.stopped() {
            return Err(ImageError::Interrupted);
        }
        observer.progress(at, size);
    }
    Ok(())
}

fn create(target: &Path, size: u64) -> std::io::Result<FormatAccess<Storage>> {
    let storage = Storage::open(StorageOpenOptions::new().filename(target).write(true))?;
    let format = Qcow2::<Storage>::create_builder(storage).size(size).cluster_size(PIECE_BYTES);
    let open = |storage| Ok(Qcow2::<Storage>::builder(storage).backing(None).write(true));
    Ok(FormatAccess::new(format.create_open(DenyImplicitOpenGate::default(), open)?))
}

fn open(path: &Path) -> std::io::Result<Qcow2<Storage>> {
    let storage = Storage::open(StorageOpenOptions::new().filename(path))?;
    Qcow2::<Storage>::builder(storage).open(DenyImplicitOpenGate::default())
}

/// A qcow2 image to read. Other files that it wants are never opened: it may come from anywhere.
pub(crate) struct Reader {
    image: FormatAccess<Storage>,
    path: std::path::PathBuf,
}

impl Reader {
    pub(crate) fn open(path: &Path) -> Result<Self, ImageError> {
        let image = open(path).map_err(|error| {
            let remedy = "give a qcow2 image that needs no other file (qemu-img convert makes one)";
            ImageError::unusable(path.display().to_string(), error, remedy)
        })?;
        Ok(Self { image: FormatAccess::new(image), path: path.to_owned() })
    }

    /// Bytes of the disk in it.
    pub(crate) fn size(&self) -> u64 {
        self.image.size()
    }

    pub(crate) fn read(&self, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
        self.image.read(buffer, at)
    }

    /// Whether the disk is zero from `at`, and for how many bytes that answer holds.
    fn extent(&self, at: u64, max: u64) -> Result<(bool, u64), ImageError> {
        let mapping = self.image.get_mapping(at, max);
        let (mapping, len) = mapping.map_err(ImageError::file("read", &self.path))?;
        let zero = matches!(mapping, Mapping::Zero { .. } | Mapping::Eof { .. });
        // A mapping of no length would never end; take a piece as it reads.
        Ok(if len == 0 { (false, max.min(PIECE_BYTES as u64)) } else { (zero, len.min(max)) })
    }

    fn copy(&self, mut at: u64, len: u64, target: &File) -> std::io::Result<()> {
        let end = at + len;
        let mut buffer = vec![0; PIECE_BYTES];
        while at < end {
            let len = usize::try_from((end - at).min(PIECE_BYTES as u64)).unwrap_or(PIECE_BYTES);
            let piece = &mut buffer[..len];
            self.read(piece, at)?;
            if !is_zero(piece) {
                target.write_all_at(piece, at)?;
            }
            at += len as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::observer::Unwatched;

    const DISK: u64 = 8 << 20;

    fn raw_with(folder: &Path, spots: &[(u64, Vec<u8>)]) -> std::path::PathBuf {
        let path = folder.join("source.raw");
        let file = File::create(&path).unwrap();
        file.set_len(DISK).unwrap();
        for (at, content) in spots {
            file.write_all_at(content, *at).unwrap();
        }
        file.set_len(DISK).unwrap();
        path
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_sparse_disk_survives_the_round_trip(
            spots in prop::collection::vec((0..DISK, prop::collection::vec(any::<u8>(), 1..5000)), 0..12)
        ) {
            let folder = tempfile::tempdir().unwrap();
            let source = raw_with(folder.path(), &spots);
            let packed = folder.path().join("disk.qcow2");
            File::create(&packed).unwrap();
            from_raw(&source, &packed, &Unwatched).unwrap();
            let back = folder.path().join("back.raw");
            to_raw(&packed, &File::create(&back).unwrap(), &Unwatched).unwrap();
            prop_assert!(std::fs::read(&source).unwrap() == std::fs::read(&back).unwrap());
        }
    }

    /// Another reader's opinion, where there is one.
    fn check_with_qemu(image: &Path) {
        match std::process::Command::new("qemu-img").arg("check").arg(image).output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            checked => assert!(checked.as_ref().is_ok_and(|output| output.status.success()), "{checked:?}"),
        }
    }

    #[test]
    fn zeros_take_no_room_and_the_bytes_are_the_same_every_time() {
        let folder = tempfile::tempdir().unwrap();
        let source = raw_with(folder.path(), &[(5 << 20, b"one cluster".to_vec())]);
        let pack = |name: &str| {
            let path = folder.path().join(name);
            File::create(&path).unwrap();
            from_raw(&source, &path, &Unwatched).unwrap();
            std::fs::read(path).unwrap()
        };
        let (one, other) = (pack("one"), pack("other"));
        let differing = one.iter().zip(&other).position(|(a, b)| a != b);
        assert_eq!((differing, one.len()), (None, other.len()));
        assert!(one.len() <= 8 * PIECE_BYTES, "{} bytes", one.len());
        check_with_qemu(&folder.path().join("one"));
    }

    #[test]
    fn an_image_that_wants_another_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let source = raw_with(folder.path(), &[]);
        let path = folder.path().join("disk.qcow2");
        File::create(&path).unwrap();
        from_raw(&source, &path, &Unwatched).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        // Offset and length of a backing file's name, and the name.
        bytes[8..16].copy_from_slice(&0x200_u64.to_be_bytes());
        bytes[16..20].copy_from_slice(&11_u32.to_be_bytes());
        bytes[0x200..0x20b].copy_from_slice(b"/etc/passwd");
        std::fs::write(&path, bytes).unwrap();
        assert!(Reader::open(&path).is_err());
    }
}
