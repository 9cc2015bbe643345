//! Looks through the partitions for what boots.

use std::sync::Arc;

use crate::disk::{Disk, Slice};
use crate::error::{BootDiskError, Fault, PartitionReport};
use crate::fs::{Files, FilesError, Kind};
use crate::grub::GrubMenu;
use crate::menu::{Fixed, Menu};
use crate::plan::{BootPlan, plan};
use crate::table::{TableError, partitions};
use crate::volume::{Volume, Volumes};
use crate::{bls, extlinux, last_resort, limits};

/// Where GRUB's configuration lies, seen from a root file system and from a `/boot` partition.
const GRUB_PATHS: [&str; 4] =
    ["/boot/grub/grub.cfg", "/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub2/grub.cfg"];

/// What a report says was looked for.
const LOOKED_FOR: &str = "no grub.cfg in /boot/grub, /grub, /boot/grub2 or /grub2, no entries in /loader/entries or \
                          /boot/loader/entries, no extlinux.conf or syslinux.cfg, no /vmlinuz or /boot/vmlinuz";

/// What to look for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A boot entry by its title, its id or its position in [`BootPlan::entries`]; the configuration's default if `None`.
    pub entry: Option<String>,
}

/// Finds what the disk boots: the first boot configuration of its partitions, in their order.
///
/// # Errors
/// When there is none, when it is not understood, when it lacks the entry asked for, or when a file the entry names is
/// missing or too large. Each error says what was found instead.
pub fn find(disk: Arc<dyn Disk>, options: &Options) -> Result<BootPlan, BootDiskError> {
    let partitions = partitions(&Slice::whole(disk)).map_err(|e| match e {
        TableError::Io(e) => BootDiskError::Disk(e),
        broken @ TableError::BrokenGpt => BootDiskError::Table(broken.to_string()),
    })?;
    let mut search = Search { remarks: vec![Vec::new(); partitions.len()] };
    let volumes = Volumes(partitions.into_iter().map(Volume::open).collect());
    match search.menu(&volumes)? {
        Some((menu, origin)) => plan(&volumes, menu.as_ref(), origin, options.entry.as_deref()),
        None => Err(search.nothing(&volumes)),
    }
}

/// A menu and where it stands.
type Origin<'a> = (Box<dyn Menu + 'a>, String);

struct Search {
    /// Of each volume: what was found there and boots nothing.
    remarks: Vec<Vec<String>>,
}

impl Search {
    fn menu<'a>(&mut self, volumes: &'a Volumes) -> Result<Option<Origin<'a>>, BootDiskError> {
        for (index, volume) in volumes.0.iter().enumerate() {
            let Some(files) = &volume.files else {
                continue;
            };
            if let Some((menu, path)) = self.configured(volumes, index, files)? {
                return Ok(Some((menu, format!("{volume}: {path}"))));
            }
        }
        Ok(self.unconfigured(volumes))
    }

    fn configured<'a>(
        &mut self,
        volumes: &'a Volumes,
        index: usize,
        files: &Files,
    ) -> Result<Option<Origin<'a>>, BootDiskError> {
        let broken = |path: &str, e: &Fault| BootDiskError::Config {
            origin: format!("{}: {path}", volumes.0[index]),
            reason: e.to_string(),
        };
        for path in GRUB_PATHS {
            let Some(script) = self.read(index, files, path, limits::SCRIPT_BYTES_MAX) else {
                continue;
            };
            let menu = GrubMenu::load(volumes, index, path, &script).map_err(|e| broken(path, &e))?;
            if !menu.items().is_empty() {
                return Ok(Some((Box::new(menu), path.to_owned())));
            }
            self.remarks[index].push(format!("{path} offers no entries"));
        }
        if let Some(found) = self.spec_entries(volumes, index) {
            return Ok(Some(found));
        }
        for path in extlinux::PATHS {
            let Some(text) = self.read(index, files, path, limits::SMALL_FILE_BYTES_MAX) else {
                continue;
            };
            let text = String::from_utf8_lossy(&text);
            let menu = extlinux::read(index, path, &text).map_err(|e| broken(path, &e))?;
            if !menu.items().is_empty() {
                return Ok(Some((Box::new(menu), path.to_owned())));
            }
            self.remarks[index].push(format!("{path} offers no entries"));
        }
        Ok(None)
    }

    /// Entries without a `grub.cfg` to lead to them; no loader's variables are known then.
    fn spec_entries<'a>(&mut self, volumes: &'a Volumes, index: usize) -> Option<Origin<'a>> {
        match bls::read(volumes, index, &|_| String::new()) {
            Ok(entries) if entries.is_empty() => None,
            Ok(entries) => {
                let mut menu = Fixed::default();
                for (item, boot) in entries {
                    menu.push(item, boot);
                }
                menu.default = menu.boots.iter().position(|boot| boot.kernel.is_some()).unwrap_or(0);
                let folder = bls::FOLDERS.into_iter().find(|folder| volumes.has(index, folder));
                Some((Box::new(menu), folder.unwrap_or_default().to_owned()))
            }
            Err(e) => {
                self.remarks[index].push(format!("boot-loader-spec entries: {e}"));
                None
            }
        }
    }

    fn unconfigured<'a>(&mut self, volumes: &'a Volumes) -> Option<Origin<'a>> {
        for (index, volume) in volumes.0.iter().enumerate() {
            match last_resort::read(volumes, index) {
                Ok(Some((menu, how))) => return Some((Box::new(menu), format!("{volume}: {how}"))),
                Ok(None) => {}
                Err(e) => self.remarks[index].push(e.to_string()),
            }
        }
        None
    }

    fn read(&mut self, index: usize, files: &Files, path: &str, most: u64) -> Option<Vec<u8>> {
        let read: Result<_, FilesError> = files.read(path, most);
        read.unwrap_or_else(|e| {
            self.remarks[index].push(format!("{path}: {e}"));
            None
        })
    }

    fn nothing(self, volumes: &Volumes) -> BootDiskError {
        let reports = volumes.0.iter().zip(self.remarks).map(report).collect::<Vec<_>>();
        if reports.iter().any(|report| report.kind.is_encrypted()) {
            BootDiskError::Encrypted(reports)
        } else if reports.iter().any(|report| matches!(report.kind, Kind::Ext | Kind::Unknown)) {
            BootDiskError::Nothing(reports)
        } else {
            BootDiskError::Unsupported(reports)
        }
    }
}

fn report((volume, remarks): (&Volume, Vec<String>)) -> PartitionReport {
    let remark = match (&volume.trouble, volume.kind) {
        (Some(trouble), _) => trouble.clone(),
        (None, Kind::Ext) if remarks.is_empty() => LOOKED_FOR.to_owned(),
        (None, Kind::Ext) => format!("{}; {LOOKED_FOR}", remarks.join("; ")),
        (None, Kind::Unknown) => "no file system known here".to_owned(),
        (None, _) => "not read here".to_owned(),
    };
    PartitionReport { partition: volume.to_string(), kind: volume.kind, remark }
}
