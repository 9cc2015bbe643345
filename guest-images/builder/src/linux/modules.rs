//! Kernel modules: what they are called, what they need, and in which order to load them.
//!
//! Debian's package has no `modules.dep` (depmod writes it at installation), so dependencies come from each module's own
//! `.modinfo` section, where modpost wrote them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ImageError;
use crate::cache::Sha256Hex;

const REMEDY: &str = "check the module's name against the kernel package";

/// One module of the kernel package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Module {
    /// Path relative to the kernel's folder in the cache.
    pub(crate) path: String,
    /// Names of modules to load before it.
    pub(crate) depends: Vec<String>,
    /// Hash of the file.
    pub(crate) sha256: Sha256Hex,
}

/// All modules by name, underscores for dashes.
pub(crate) type ModuleIndex = BTreeMap<String, Module>;

/// Modules are asked for by either spelling; the kernel itself uses underscores.
pub(crate) fn normal_name(name: &str) -> String {
    name.replace('-', "_")
}

/// The modules wanted and all they need, each after what it needs, none twice.
pub(crate) fn load_order(index: &ModuleIndex, wanted: &[&str]) -> Result<Vec<String>, ImageError> {
    let mut walk = Walk { index, order: Vec::new(), seen: BTreeSet::new() };
    wanted.iter().try_for_each(|name| walk.visit(&normal_name(name)))?;
    Ok(walk.order)
}

struct Walk<'a> {
    index: &'a ModuleIndex,
    order: Vec<String>,
    seen: BTreeSet<String>,
}

impl Walk<'_> {
    fn visit(&mut self, name: &str) -> Result<(), ImageError> {
        if !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let unknown = || ImageError::unusable(format!("kernel module {name}"), "not in the package", REMEDY);
        let module = self.index.get(name).ok_or_else(unknown)?;
        module.depends.iter().try_for_each(|needed| self.visit(&normal_name(needed)))?;
        self.order.push(name.to_owned());
        Ok(())
    }
}

/// The names a module's file says it depends on.
pub(crate) fn dependencies(file: &[u8]) -> Result<Vec<String>, String> {
    let modinfo = section(file, b".modinfo").ok_or("no .modinfo section")?;
    let depends = modinfo.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(b"depends="));
    let depends = std::str::from_utf8(depends.unwrap_or_default()).map_err(|error| error.to_string())?;
    Ok(depends.split(',').filter(|name| !name.is_empty()).map(normal_name).collect())
}

/// Finds a section of a 64-bit little-endian ELF file by name.
fn section<'a>(file: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let valid = file.starts_with(&[0x7f, b'E', b'L', b'F', 2, 1]);
    let table = number(file, 0x28, 8).filter(|_| valid)?;
    let (entry_size, count, names) = (number(file, 0x3a, 2)?, number(file, 0x3c, 2)?, number(file, 0x3e, 2)?);
    let header = |index: usize| file.get(table.checked_add(index.checked_mul(entry_size)?)?..);
    let content = |header: &[u8]| {
        let start = number(header, 0x18, 8)?;
        file.get(start..start.checked_add(number(header, 0x20, 8)?)?)
    };
    let name_table = content(header(names)?)?;
    (0..count).filter_map(header).find_map(|header| {
        let found = name_table.get(number(header, 0, 4)?..)?.split(|byte| *byte == 0).next()?;
        (found == name).then(|| content(header)).flatten()
    })
}

fn number(bytes: &[u8], at: usize, len: usize) -> Option<usize> {
    let mut raw = [0_u8; 8];
    raw[..len].copy_from_slice(bytes.get(at..at.checked_add(len)?)?);
    usize::try_from(u64::from_le_bytes(raw)).ok()
}

/// Reads `data` as a module's file.
#[cfg(feature = "fuzzing")]
pub fn fuzz_module(data: &[u8]) {
    let _ = dependencies(data);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index(modules: &[(&str, &[&str])]) -> ModuleIndex {
        let module = |depends: &[&str]| Module {
            path: String::new(),
            depends: depends.iter().map(|name| (*name).to_owned()).collect(),
            sha256: Sha256Hex::of(b""),
        };
        modules.iter().map(|(name, depends)| ((*name).to_owned(), module(depends))).collect()
    }

    #[test]
    fn needed_modules_come_first_and_once() {
        let index =
            index(&[("kvm_amd", &["kvm"]), ("kvm", &["irqbypass"]), ("irqbypass", &[]), ("tun", &[])]);
        assert_eq!(
            load_order(&index, &["kvm-amd", "tun", "kvm"]).unwrap(),
            ["irqbypass", "kvm", "kvm_amd", "tun"]
        );
    }

    #[test]
    fn a_circle_ends_and_an_unknown_module_is_named() {
        let index = index(&[("a", &["b"]), ("b", &["a"]), ("c", &["gone"])]);
        assert_eq!(load_order(&index, &["a"]).unwrap(), ["b", "a"]);
        assert!(load_order(&index, &["c"]).unwrap_err().to_string().contains("gone"));
    }

    /// An ELF file with a section-name table and a .modinfo section.
    fn module_file(modinfo: &[u8]) -> Vec<u8> {
        let names = b"\0.shstrtab\0.modinfo\0";
        let (names_at, modinfo_at) = (0x40, 0x40 + names.len());
        let table = modinfo_at + modinfo.len();
        let mut file = vec![0_u8; 0x40];
        file[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        file[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        file[0x3a..0x40].copy_from_slice(&[0x40, 0, 3, 0, 1, 0]);
        file.extend_from_slice(names);
        file.extend_from_slice(modinfo);
        for (name, at, len) in [(0_u32, 0, 0), (1, names_at, names.len()), (11, modinfo_at, modinfo.len())] {
            let mut header = [0_u8; 0x40];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(len as u64).to_le_bytes());
            file.extend_from_slice(&header);
        }
        file
    }

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let file = module_file(b"license=GPL\0depends=virtio-ring,virtio\0name=virtio_net\0");
        assert_eq!(dependencies(&file).unwrap(), ["virtio_ring", "virtio"]);
        assert_eq!(dependencies(&module_file(b"depends=\0")).unwrap(), Vec::<String>::new());
        assert!(dependencies(b"not an ELF file").is_err());
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(at in 0_usize..300, value in any::<u8>(), cut in 0_usize..300) {
            let mut file = module_file(b"depends=a,b\0");
            if let Some(byte) = file.get_mut(at) {
                *byte = value;
            }
            file.truncate(file.len().saturating_sub(cut));
            let _ = dependencies(&file);
        }
    }
}
