//! Disks that do not boot, and what is said about them.

use std::fmt::Write;

use endophyte_bootdisk::{BootDiskError, Kind};

use crate::image::{BOOT, Image, ROOT, can_make, mib};

const DISK_BYTES: u64 = 64 << 20;

/// A bare file system with a `grub.cfg` of this text, and a kernel and an initrd.
fn with_script(script: &str) -> Image {
    let image = Image::new(DISK_BYTES);
    image.ext4(mib(0, 64), ROOT, &[("/boot/grub/grub.cfg", script), ("/k", "kernel"), ("/i", "initrd")], &[]);
    image
}

#[test]
fn nothing_bootable_lists_every_partition() {
    if !can_make() {
        return;
    }
    let image = Image::new(DISK_BYTES);
    image.gpt(512, &[mib(1, 2), mib(4, 16), mib(24, 32)]);
    image.ext4(mib(4, 16), BOOT, &[("/grub/grub.cfg", "set timeout=5\n")], &[]);
    image.write(24 << 20, b"XFSB");
    let error = image.find().unwrap_err();
    let BootDiskError::Nothing(reports) = &error else {
        panic!("{error}");
    };
    assert_eq!(
        reports.iter().map(|r| r.kind).collect::<Vec<_>>(),
        [Kind::Unknown, Kind::Ext, Kind::Other("xfs")]
    );
    let text = error.to_string();
    for part in [
        "partition 2 (ext4): /grub/grub.cfg offers no entries",
        "partition 3 (xfs): not read here",
        "/vmlinuz",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn encrypted_and_unsupported_disks_are_called_so() {
    let image = Image::new(DISK_BYTES);
    image.gpt(512, &[mib(1, 2)]);
    image.write(1 << 20, b"XFSB");
    assert!(matches!(image.find(), Err(BootDiskError::Unsupported(_))));
    image.write(1 << 20, b"LUKS\xba\xbe");
    let error = image.find().unwrap_err();
    assert!(matches!(error, BootDiskError::Encrypted(_)));
    assert!(error.to_string().contains("partition 1 (LUKS (encrypted))"), "{error}");
}

#[test]
fn a_gpt_broken_on_both_ends_is_not_guessed_at() {
    let image = Image::new(DISK_BYTES);
    image.gpt(512, &[mib(1, 2)]);
    image.write(512 + 40, &[0x55]);
    image.write(DISK_BYTES - 512 + 40, &[0x55]);
    assert!(matches!(image.find(), Err(BootDiskError::Table(_))));
}

#[test]
fn an_empty_disk_is_an_error() {
    assert!(matches!(Image::new(0).find(), Err(BootDiskError::Nothing(_))));
    assert!(matches!(Image::new(DISK_BYTES).find(), Err(BootDiskError::Nothing(_))));
}

#[test]
fn an_unknown_entry_is_answered_with_those_that_exist() {
    if !can_make() {
        return;
    }
    let image = with_script("menuentry 'One' { linux /k }\nmenuentry 'Two' { linux /k }\n");
    let error = image.find_entry(Some("Three")).unwrap_err();
    assert!(
        matches!(&error, BootDiskError::UnknownEntry { entries, .. } if entries == &["One", "Two"]),
        "{error}"
    );
    assert!(error.to_string().contains("  1: Two"), "{error}");
}

#[test]
fn a_missing_kernel_is_named() {
    if !can_make() {
        return;
    }
    for (script, part) in [
        ("menuentry 'A' { linux /none }", "names (hd0)/none, which does not exist"),
        ("menuentry 'A' { linux (lvm/vg-root)/k }", "names (lvm/vg-root)/k, which is on a device"),
        ("menuentry 'A' { linux /k\n initrd /boot }", "names (hd0)/boot, which does not exist"),
    ] {
        let error = with_script(script).find().unwrap_err();
        assert!(matches!(error, BootDiskError::Missing { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn entries_of_other_systems_are_not_booted() {
    if !can_make() {
        return;
    }
    let image = with_script("menuentry 'Other' { chainloader +1 }\nmenuentry 'Linux' { linux /k }\n");
    assert!(matches!(image.find(), Err(BootDiskError::NoKernel { title, .. }) if title == "Other"));
    assert_eq!(image.find_entry(Some("Linux")).unwrap().initrds.len(), 0);
}

#[test]
fn a_script_that_is_wrong_is_named_with_its_line() {
    if !can_make() {
        return;
    }
    let error = with_script("set a=b\nif [ x ]; then\n").find().unwrap_err();
    assert!(error.to_string().contains("/boot/grub/grub.cfg: line"), "{error}");
}

#[test]
fn scripts_that_do_not_end_are_ended() {
    if !can_make() {
        return;
    }
    let mut many = String::new();
    for i in 0..10_000 {
        writeln!(many, "menuentry '{i}' {{ linux /k }}").unwrap();
    }
    for script in [
        "while true; do true; done",
        "function f { f; }\nf",
        "source $prefix/grub.cfg",
        "set a=aaaaaaaa\nwhile true; do set a=$a$a; done",
        "function m { submenu x { m; } }\nm",
        "while true; do [ -f /k ]; done",
        &many,
    ] {
        let error = with_script(script).find().unwrap_err();
        assert!(
            matches!(&error, BootDiskError::Config { reason, .. } if reason.contains("exceeds")),
            "{error}"
        );
    }
}

#[test]
fn a_kernel_too_large_to_be_one_is_refused() {
    if !can_make() {
        return;
    }
    let image = Image::new(DISK_BYTES);
    let tree = [("/boot/grub/grub.cfg", "menuentry 'A' { linux /k }"), ("/k", "")];
    // A hole costs nothing in the image.
    image.ext4_with(mib(0, 64), ROOT, &tree, &[], |from| {
        std::fs::File::create(from.join("k")).unwrap().set_len((256 << 20) + 1).unwrap();
    });
    let error = image.find().unwrap_err();
    assert!(matches!(error, BootDiskError::TooLarge { bytes, .. } if bytes == (256 << 20) + 1), "{error}");
}

#[test]
fn links_that_go_in_circles_end() {
    if !can_make() {
        return;
    }
    let image = Image::new(DISK_BYTES);
    let tree = [("/boot/grub/grub.cfg", "menuentry 'A' { linux /a }"), ("/a", "->b"), ("/b", "->./a")];
    image.ext4(mib(0, 64), ROOT, &tree, &[]);
    let error = image.find().unwrap_err();
    assert!(error.to_string().contains("too many links"), "{error}");
}

#[test]
fn an_image_cut_short_is_said_to_be() {
    if !can_make() {
        return;
    }
    let image = Image::new(DISK_BYTES);
    image.ext4(mib(0, 64), ROOT, &[("/vmlinuz", "k")], &[]);
    image.set_len(DISK_BYTES / 2);
    let error = image.find().unwrap_err();
    assert!(error.to_string().contains("cut short"), "{error}");
}

/// `ext4-view` 1.0.0 slices past the block's end by a count in an indexed folder's first block, if the file system has
/// sums of metadata.
#[test]
fn an_absurd_count_in_an_indexed_folder_is_survived() {
    if !can_make() {
        return;
    }
    let image = Image::new(DISK_BYTES);
    let names: Vec<_> = (0..40).map(|i| format!("/boot/{i:02}{}", "x".repeat(200))).collect();
    let mut tree: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
    tree.extend([("/boot/grub/grub.cfg", "menuentry 'A' { linux /boot/k }"), ("/boot/k", "kernel")]);
    image.ext4(mib(0, 64), ROOT, &tree, &["-b", "1024", "-O", "metadata_csum,dir_index"]);
    image.index_folders();
    image.find().unwrap();
    assert_eq!(image.change_blocks(is_index_root, |block| block[0x22..0x24].fill(0xff)), 1);
    assert!(matches!(image.find(), Err(BootDiskError::Nothing(_))));
}

/// `.` and `..`, then what describes the index.
fn is_index_root(block: &[u8]) -> bool {
    block[6..9] == *b"\x01\x02."
        && block[0x14..0x16] == *b".."
        && block[0x18..0x1c] == [0; 4]
        && block[0x1d] == 8
}
