//! Debian's cloud kernel: fetched once, unpacked, indexed, checked whenever a part of it is used.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::apt;
use super::bzimage::vmlinux_from_bzimage;
use super::modules::{self, Module, ModuleIndex};
use crate::ImageError;
use crate::cache::{Cache, Sha256Hex, write_atomically};

const METAPACKAGE: &str = "linux-image-cloud-amd64";
const PACKAGE_PREFIX: &str = "linux-image-";
const MANIFEST: &str = "manifest.json";
const VMLINUX: &str = "vmlinux";
const BZIMAGE: &str = "bzImage";
const REMEDY: &str = "remove the kernel from the cache (mycelium image rm) to fetch it again";

/// An unpacked kernel package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    folder: PathBuf,
    manifest: Manifest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    package: String,
    version: String,
    vmlinux_sha256: Sha256Hex,
    /// Kernels fetched by older versions lack it.
    #[serde(default)]
    bzimage_sha256: Option<Sha256Hex>,
    modules: ModuleIndex,
}

impl Kernel {
    /// The kernel from the cache, fetched with apt when the cache has none. A cached kernel stays until it is removed, so
    /// that runs compare.
    ///
    /// # Errors
    /// [`ImageError::Unusable`] and [`ImageError::Command`] when it cannot be fetched or is damaged.
    pub fn ensure(cache: &Cache) -> Result<Self, ImageError> {
        let kernels = cache.subfolder("kernel")?;
        match newest_folder(&kernels)? {
            Some(folder) => Self::open(folder),
            None => fetch(&kernels).and_then(Self::open),
        }
    }

    /// Path of the uncompressed kernel, an ELF file with a PVH entry.
    pub fn vmlinux(&self) -> PathBuf {
        self.folder.join(VMLINUX)
    }

    /// Path of the kernel as Debian packs it, for boot loaders.
    ///
    /// # Errors
    /// [`ImageError::Unusable`] when it is not as it was unpacked, or was not kept.
    pub fn bzimage(&self) -> Result<PathBuf, ImageError> {
        let path = self.folder.join(BZIMAGE);
        let not_kept =
            || ImageError::unusable(path.display().to_string(), "not kept by an older version", REMEDY);
        read_checked(&path, self.manifest.bzimage_sha256.as_ref().ok_or_else(not_kept)?)?;
        Ok(path)
    }

    /// Debian package and version, for reports.
    pub fn version(&self) -> String {
        format!("{} {}", self.manifest.package, self.manifest.version)
    }

    /// The modules asked for and all they need, in load order, as (name, file content).
    ///
    /// # Errors
    /// [`ImageError::Unusable`] for a module the kernel lacks or a file that is not as it was unpacked.
    pub fn modules(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>, ImageError> {
        let order = modules::load_order(&self.manifest.modules, wanted)?;
        order.into_iter().map(|name| self.read_module(&name).map(|content| (name, content))).collect()
    }

    fn read_module(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let module = &self.manifest.modules[name];
        read_checked(&self.folder.join(&module.path), &module.sha256)
    }

    fn open(folder: PathBuf) -> Result<Self, ImageError> {
        let path = folder.join(MANIFEST);
        let raw = fs::read(&path).map_err(ImageError::file("read", &path))?;
        let damaged = |error| ImageError::unusable(path.display().to_string(), error, REMEDY);
        let manifest: Manifest = serde_json::from_slice(&raw).map_err(damaged)?;
        read_checked(&folder.join(VMLINUX), &manifest.vmlinux_sha256)?;
        Ok(Self { folder, manifest })
    }
}

fn read_checked(path: &Path, sha256: &Sha256Hex) -> Result<Vec<u8>, ImageError> {
    let content = fs::read(path).map_err(ImageError::file("read", path))?;
    if Sha256Hex::of(&content) == *sha256 {
        return Ok(content);
    }
    Err(ImageError::unusable(path.display().to_string(), "changed since it was unpacked", REMEDY))
}

/// Folders are complete when they have their final name; of several the highest version wins.
fn newest_folder(kernels: &Path) -> Result<Option<PathBuf>, ImageError> {
    let entries = fs::read_dir(kernels).map_err(ImageError::file("list", kernels))?;
    let complete = entries.flatten().map(|entry| entry.path()).filter(|path| path.join(MANIFEST).is_file());
    // A folder still being filled begins with a dot.
    Ok(complete
        .filter(|path| !file_name(path).starts_with('.'))
        .max_by_key(|path| version_key(&file_name(path))))
}

/// The numbers in a name, in order, so that 6.1.0-9 comes before 6.1.0-56.
fn version_key(name: &str) -> Vec<u64> {
    name.split(|symbol: char| !symbol.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn fetch(kernels: &Path) -> Result<PathBuf, ImageError> {
    let package = apt::resolve(METAPACKAGE, PACKAGE_PREFIX)?;
    let staging = tempfile::Builder::new().prefix(".fetch-").tempdir_in(kernels);
    let staging = staging.map_err(ImageError::file("write into", kernels))?;
    let (unpacked, kept) = (staging.path().join("unpacked"), staging.path().join("kept"));
    let deb = apt::download(&package, staging.path())?;
    apt::unpack(&deb, &unpacked)?;
    fs::create_dir(&kept).map_err(ImageError::file("create", &kept))?;
    let (vmlinux_sha256, bzimage_sha256) = keep_kernel(&unpacked.join("boot"), &kept)?;
    let modules = keep_modules(&unpacked.join("lib/modules"), &kept)?;
    let folder = kernels.join(format!("{}_{}", package.name, package.version.replace(':', "_")));
    let bzimage_sha256 = Some(bzimage_sha256);
    let manifest =
        Manifest { package: package.name, version: package.version, vmlinux_sha256, bzimage_sha256, modules };
    let raw = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| ImageError::unusable(MANIFEST, error, REMEDY))?;
    write_atomically(&kept.join(MANIFEST), &raw)?;
    match fs::rename(&kept, &folder) {
        // Another process may have fetched the same kernel meanwhile; its folder is as good.
        Err(_) if folder.join(MANIFEST).is_file() => Ok(folder),
        renamed => {
            renamed.map(|()| folder.clone()).map_err(ImageError::file("move the unpacked kernel to", folder))
        }
    }
}

/// Keeps the kernel unpacked and packed; returns the hash of each.
fn keep_kernel(boot: &Path, kept: &Path) -> Result<(Sha256Hex, Sha256Hex), ImageError> {
    let found = files_below(boot)?.into_iter().find(|path| file_name(path).starts_with("vmlinuz-"));
    let found = found
        .ok_or_else(|| ImageError::unusable(METAPACKAGE, "the package has no /boot/vmlinuz-*", REMEDY))?;
    let bzimage = fs::read(&found).map_err(ImageError::file("read", &found))?;
    let vmlinux = vmlinux_from_bzimage(&bzimage)?;
    write_atomically(&kept.join(VMLINUX), &vmlinux)?;
    write_atomically(&kept.join(BZIMAGE), &bzimage)?;
    Ok((Sha256Hex::of(&vmlinux), Sha256Hex::of(&bzimage)))
}

fn keep_modules(tree: &Path, kept: &Path) -> Result<ModuleIndex, ImageError> {
    let folder = kept.join("modules");
    fs::create_dir(&folder).map_err(ImageError::file("create", &folder))?;
    let files = files_below(tree)?;
    files
        .iter()
        .filter(|path| path.extension() == Some(OsStr::new("ko")))
        .map(|file| keep_module(file, &folder))
        .collect()
}

fn keep_module(file: &Path, folder: &Path) -> Result<(String, Module), ImageError> {
    let content = fs::read(file).map_err(ImageError::file("read", file))?;
    let unusable = |reason| ImageError::unusable(file.display().to_string(), reason, REMEDY);
    let depends = modules::dependencies(&content).map_err(unusable)?;
    let name = modules::normal_name(file_name(file).trim_end_matches(".ko"));
    let path = format!("modules/{name}.ko");
    fs::rename(file, folder.join(format!("{name}.ko"))).map_err(ImageError::file("move", file))?;
    Ok((name, Module { path, depends, sha256: Sha256Hex::of(&content) }))
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(ImageError::file("list", folder))? {
        let path = entry.map_err(ImageError::file("list", folder))?.path();
        // A link may lead out of the package; none of what is wanted is one.
        if path.is_dir() && !path.is_symlink() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Lays a kernel into the cache whose modules contain their own names.
    pub(in crate::linux) fn lay_kernel(
        cache: &Cache,
        name: &str,
        vmlinux: &[u8],
        modules: &[(&str, &[&str])],
    ) {
        let folder = cache.subfolder("kernel").unwrap().join(name);
        fs::create_dir_all(folder.join("modules")).unwrap();
        fs::write(folder.join(VMLINUX), vmlinux).unwrap();
        let lay = |(name, depends): &(&str, &[&str])| {
            let path = format!("modules/{name}.ko");
            fs::write(folder.join(&path), name).unwrap();
            let depends = depends.iter().map(|name| (*name).to_owned()).collect();
            ((*name).to_owned(), Module { path, depends, sha256: Sha256Hex::of(name.as_bytes()) })
        };
        let manifest = Manifest {
            package: name.into(),
            version: "1".into(),
            vmlinux_sha256: Sha256Hex::of(b"vmlinux"),
            bzimage_sha256: None,
            modules: modules.iter().map(lay).collect(),
        };
        fs::write(folder.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
    }

    #[test]
    fn a_cached_kernel_is_reused_and_the_newest_wins() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        for name in ["linux-image-6.1.0-9", "linux-image-6.1.0-56", ".fetch-unfinished"] {
            lay_kernel(&cache, name, b"vmlinux", &[("tun", &[])]);
        }
        let kernel = Kernel::ensure(&cache).unwrap();
        assert_eq!(kernel.version(), "linux-image-6.1.0-56 1");
        assert_eq!(kernel.modules(&["tun"]).unwrap(), [("tun".to_owned(), b"tun".to_vec())]);
    }

    #[test]
    fn a_changed_kernel_or_module_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        lay_kernel(&cache, "linux-image-6.1.0-56", b"vmlinux", &[("tun", &[])]);
        let kernel = Kernel::ensure(&cache).unwrap();
        fs::write(kernel.folder.join("modules/tun.ko"), b"other").unwrap();
        assert!(kernel.modules(&["tun"]).unwrap_err().to_string().contains("changed since"));
        fs::write(kernel.vmlinux(), b"other").unwrap();
        assert!(Kernel::ensure(&cache).unwrap_err().to_string().contains("changed since"));
    }
}
