//! `extlinux.conf` and `syslinux.cfg`.

use crate::error::Fault;
use crate::limits;
use crate::menu::{Boot, Fixed, Item, Place};

/// Where such a file lies, seen from a root file system and from a `/boot` partition.
pub(crate) const PATHS: [&str; 8] = [
    "/boot/extlinux/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/syslinux/syslinux.cfg",
    "/boot/syslinux.cfg",
    "/syslinux.cfg",
];

/// Reads the file found at `path` of `volume`. Other files it includes are left out.
pub(crate) fn read(volume: usize, path: &str, text: &str) -> Result<Fixed, Fault> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut reader = Reader { volume, folder, menu: Fixed::default(), default: String::new() };
    for line in text.lines().map(str::trim) {
        let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        reader.line(&key.to_ascii_lowercase(), value.trim())?;
    }
    Ok(reader.finish())
}

struct Reader<'a> {
    volume: usize,
    folder: &'a str,
    menu: Fixed,
    default: String,
}

impl Reader<'_> {
    fn line(&mut self, key: &str, value: &str) -> Result<(), Fault> {
        match key {
            "default" => value.clone_into(&mut self.default),
            "label" => self.label(value)?,
            "menu" => self.menu_line(value),
            "linux" | "kernel" => {
                let place = self.place(value);
                self.edit(|boot| boot.kernel = Some(place));
            }
            "initrd" => self.initrds(value)?,
            "append" => self.append(value)?,
            _ => {}
        }
        Ok(())
    }

    fn label(&mut self, label: &str) -> Result<(), Fault> {
        if self.menu.items.len() == limits::ENTRIES_MAX {
            return Err(Fault::bound("entries", limits::ENTRIES_MAX));
        }
        let item = Item { title: label.to_owned(), ids: vec![label.to_owned()] };
        self.menu.push(item, Boot::default());
        Ok(())
    }

    fn menu_line(&mut self, value: &str) {
        let (key, title) = value.split_once(char::is_whitespace).unwrap_or((value, ""));
        let Some(item) = self.menu.items.last_mut() else {
            return;
        };
        match key.to_ascii_lowercase().as_str() {
            // A caret marks the letter that chooses the entry.
            "label" => item.title = title.trim().replace('^', ""),
            "default" => self.default.clone_from(&item.ids[0]),
            _ => {}
        }
    }

    fn place(&self, path: &str) -> Place {
        let path = if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", self.folder) };
        Place { volume: Some(self.volume), device: String::new(), path }
    }

    fn initrds(&mut self, list: &str) -> Result<(), Fault> {
        let places: Vec<_> = list.split(',').filter(|p| !p.is_empty()).map(|path| self.place(path)).collect();
        if places.len() > limits::INITRDS_MAX {
            return Err(Fault::bound("initrds", limits::INITRDS_MAX));
        }
        self.edit(|boot| boot.initrds = places);
        Ok(())
    }

    /// Syslinux takes an initrd out of the kernel's options too.
    fn append(&mut self, options: &str) -> Result<(), Fault> {
        if options.len() > limits::CMDLINE_BYTES_MAX {
            return Err(Fault::bound("bytes of a command line", limits::CMDLINE_BYTES_MAX));
        }
        let (initrds, rest): (Vec<_>, Vec<_>) =
            options.split_whitespace().partition(|o| o.starts_with("initrd="));
        self.edit(|boot| boot.cmdline = rest.join(" "));
        match initrds.last().and_then(|o| o.strip_prefix("initrd=")) {
            Some(list) => self.initrds(list),
            None => Ok(()),
        }
    }

    fn edit(&mut self, change: impl FnOnce(&mut Boot)) {
        if let Some(boot) = self.menu.boots.last_mut() {
            change(boot);
        }
    }

    fn finish(mut self) -> Fixed {
        let named = |item: &Item| item.ids.contains(&self.default);
        self.menu.default = self.menu.items.iter().position(named).unwrap_or(0);
        self.menu
    }
}

/// Entry point for fuzzing.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(text: &str) {
    use crate::menu::Menu;
    let Ok(menu) = read(0, "/boot/extlinux.conf", text) else { return };
    let entries = menu.items.len();
    assert!(entries <= limits::ENTRIES_MAX && (entries == 0 || menu.default_index() < entries));
    (0..entries).for_each(|entry| drop(menu.boot(entry)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::menu::Menu;

    const ALPINE: &str = "DEFAULT menu.c32\nPROMPT 0\nMENU TITLE Alpine/Linux Boot Menu\n\nLABEL lts\n\
        MENU LABEL ^Linux lts\n  LINUX vmlinuz-lts\n  INITRD initramfs-lts\n\
        APPEND root=UUID=1 modules=ext4 quiet\n\nLABEL virt\n  MENU DEFAULT\n  KERNEL /other/vmlinuz-virt\n\
        APPEND initrd=a,/b root=/dev/vda3\n";

    #[test]
    fn labels_become_entries_with_paths_beside_the_file() {
        let menu = read(2, "/boot/extlinux.conf", ALPINE).unwrap();
        assert_eq!(menu.items[0].title, "Linux lts");
        assert_eq!(menu.default_index(), 1);
        let lts = menu.boot(0).unwrap();
        assert_eq!(lts.kernel.unwrap().path, "/boot/vmlinuz-lts");
        assert_eq!(lts.cmdline, "root=UUID=1 modules=ext4 quiet");
    }

    #[test]
    fn an_initrd_among_the_options_is_one() {
        let virt = read(2, "/boot/extlinux.conf", ALPINE).unwrap().boot(1).unwrap();
        assert_eq!(virt.kernel.unwrap().path, "/other/vmlinuz-virt");
        assert_eq!(virt.initrds.iter().map(|p| p.path.as_str()).collect::<Vec<_>>(), ["/boot/a", "/b"]);
        assert_eq!(virt.cmdline, "root=/dev/vda3");
    }

    #[test]
    fn entries_are_bounded() {
        let text = "label x\n".repeat(limits::ENTRIES_MAX + 1);
        assert!(read(0, "/x", &text).is_err());
    }
}
