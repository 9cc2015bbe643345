//! GRUB's script language, as far as boot configurations use it.
//!
//! `lexer` makes words, `parser` statements, `machine` carries them out against the disk's partitions, `menu` offers the
//! entries that came of it. As in GRUB an entry's body only runs once it is chosen. Commands that are not about what is
//! booted (screens, fonts, modules) succeed and do nothing.

mod commands;
mod device;
mod env;
mod expand;
mod lexer;
mod machine;
mod menu;
mod options;
mod parser;
mod test;

pub(crate) use expand::substitute;
pub(crate) use menu::GrubMenu;

/// Parses and runs a script on a disk without partitions.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(script: &[u8]) {
    use crate::menu::Menu;
    let volumes = crate::volume::Volumes(Vec::new());
    let Ok(menu) = GrubMenu::load(&volumes, 0, "/boot/grub/grub.cfg", script) else {
        return;
    };
    assert!(menu.items().len() <= crate::limits::ENTRIES_MAX);
    assert!(menu.items().is_empty() || menu.default_index() < menu.items().len());
    for index in 0..menu.items().len().min(4) {
        let _ = menu.boot(index);
    }
}

#[cfg(test)]
mod tests;
