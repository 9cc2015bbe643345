//! The uncompressed kernel inside a bzImage.
//!
//! The boot protocol's setup header says where the compressed payload lies (Documentation/arch/x86/boot.rst). Debian 12
//! compresses it with LZ4's legacy format: a magic number, then blocks with their compressed length before each.

use crate::ImageError;
use crate::limits::{LZ4_LEGACY_BLOCK_BYTES, VMLINUX_BYTES_MAX};

const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR_BYTES: usize = 512;
const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const ELF_MAGIC: &[u8] = b"\x7fELF";
const REMEDY: &str = "use Debian 12's linux-image-cloud-amd64";

/// Unpacks the kernel's ELF file.
///
/// # Errors
/// [`ImageError::Unusable`] when the file is no bzImage, is compressed in another way, or is damaged.
pub fn vmlinux_from_bzimage(bzimage: &[u8]) -> Result<Vec<u8>, ImageError> {
    let payload = payload(bzimage).map_err(|reason| ImageError::unusable("bzImage", reason, REMEDY))?;
    let vmlinux = unpack_lz4_legacy(payload)
        .map_err(|reason| ImageError::unusable("bzImage's payload", reason, REMEDY))?;
    if vmlinux.starts_with(ELF_MAGIC) {
        return Ok(vmlinux);
    }
    Err(ImageError::unusable("bzImage's payload", "unpacks to something that is no ELF file", REMEDY))
}

fn payload(bzimage: &[u8]) -> Result<&[u8], String> {
    if bzimage.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
        return Err("no setup header".to_owned());
    }
    let sectors = usize::from(bzimage[SETUP_SECTS]).max(4);
    let word = |at| word_at(bzimage, at).ok_or_else(|| "setup header cut short".to_owned());
    let start = (sectors + 1) * SECTOR_BYTES + word(PAYLOAD_OFFSET)?;
    let end = start.saturating_add(word(PAYLOAD_LENGTH)?);
    bzimage
        .get(start..end)
        .ok_or_else(|| format!("payload {start}..{end} lies outside its {} bytes", bzimage.len()))
}

/// The kernel's build appends the unpacked size to the payload; it also ends the blocks.
fn unpack_lz4_legacy(payload: &[u8]) -> Result<Vec<u8>, String> {
    let Some((body, size)) = payload.split_last_chunk::<4>() else {
        return Err(format!("only {} bytes", payload.len()));
    };
    let size = u32::from_le_bytes(*size) as usize;
    if size > VMLINUX_BYTES_MAX {
        return Err(format!("claims {size} bytes unpacked, more than {VMLINUX_BYTES_MAX}"));
    }
    let Some(mut blocks) = body.strip_prefix(&LZ4_LEGACY_MAGIC) else {
        return Err("not in LZ4's legacy format".to_owned());
    };
    // The size is a claim: memory is taken for what is really there.
    let mut out = Vec::new();
    while !blocks.is_empty() {
        let len = word_at(blocks, 0).ok_or("block length cut short")?;
        let block = blocks.get(4..4_usize.saturating_add(len)).ok_or("block cut short")?;
        let unpacked =
            lz4_flex::block::decompress(block, LZ4_LEGACY_BLOCK_BYTES).map_err(|error| error.to_string())?;
        out.extend_from_slice(&unpacked);
        if out.len() > size {
            return Err(format!("unpacks to more than the {size} bytes it claims"));
        }
        blocks = &blocks[4 + len..];
    }
    if out.len() == size { Ok(out) } else { Err(format!("unpacks to {} bytes, claims {size}", out.len())) }
}

fn word_at(bytes: &[u8], at: usize) -> Option<usize> {
    let raw: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(raw)).ok()
}

/// Reads `data` as a bzImage.
#[cfg(feature = "fuzzing")]
pub fn fuzz_bzimage(data: &[u8]) {
    let _ = vmlinux_from_bzimage(data);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(contents: &[&[u8]]) -> Vec<u8> {
        let mut payload = LZ4_LEGACY_MAGIC.to_vec();
        for block in contents.iter().map(|content| lz4_flex::block::compress(content)) {
            payload.extend_from_slice(&u32::try_from(block.len()).unwrap().to_le_bytes());
            payload.extend_from_slice(&block);
        }
        let size: usize = contents.iter().map(|content| content.len()).sum();
        payload.extend_from_slice(&u32::try_from(size).unwrap().to_le_bytes());
        payload
    }

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * SECTOR_BYTES];
        image[SETUP_SECTS] = 4;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image.resize(5 * SECTOR_BYTES + 7, 0);
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&7_u32.to_le_bytes());
        let len = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&len.to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(b"what follows the payload");
        image
    }

    #[test]
    fn the_payload_is_found_and_its_blocks_joined() {
        let image = bzimage(&packed(&[b"\x7fELF first block,", b" second block"]));
        assert_eq!(vmlinux_from_bzimage(&image).unwrap(), b"\x7fELF first block, second block");
    }

    #[test]
    fn other_compressions_and_contents_are_refused() {
        assert!(vmlinux_from_bzimage(&bzimage(b"\x28\xb5\x2f\xfd zstd....")).is_err());
        assert!(vmlinux_from_bzimage(&bzimage(&packed(&[b"MZ not an ELF file"]))).is_err());
        assert!(vmlinux_from_bzimage(b"short").is_err());
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in 0_usize..80, value in any::<u8>(), cut in 0_usize..80) {
            let mut payload = packed(&[b"\x7fELF some content that repeats, repeats, repeats"]);
            if let Some(byte) = payload.get_mut(at) {
                *byte = value;
            }
            payload.truncate(payload.len().saturating_sub(cut));
            let _ = unpack_lz4_legacy(&payload);
        }
    }
}
