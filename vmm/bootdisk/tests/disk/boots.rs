//! Disks that boot.

use crate::image::{BOOT, Image, KERNEL, ROOT, Range, can_make, contents, fixture, mib};

const DISK_BYTES: u64 = 64 << 20;

/// A Debian whose `/boot` is a folder of its root file system.
fn debian(image: &Image, at: Range, more: &[&str]) {
    // Longer than one block, so that streaming is seen to go on.
    let kernel = "the kernel ".repeat(10_000);
    let tree = [
        ("/boot/grub/grub.cfg", fixture("debian12.cfg")),
        ("/boot/vmlinuz-6.1.0-18-amd64", kernel),
        ("/boot/initrd.img-6.1.0-18-amd64", "the initrd".to_owned()),
        ("/etc/fstab", format!("UUID={ROOT} / ext4 errors=remount-ro 0 1\n")),
    ];
    image.ext4(at, ROOT, &tree.each_ref().map(|(path, text)| (*path, text.as_str())), more);
}

fn is_debian(image: &Image, source: &str) {
    let mut plan = image.find().unwrap();
    assert_eq!(plan.title, "Debian GNU/Linux");
    assert_eq!(plan.source, source);
    assert_eq!(
        plan.cmdline,
        format!(
            "root=UUID={ROOT} ro console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200 consoleblank=0"
        )
    );
    assert_eq!(plan.kernel.path, format!("/boot/vmlinuz-{KERNEL}"));
    assert_eq!(contents(&mut plan.kernel), "the kernel ".repeat(10_000));
    assert_eq!(plan.initrds.len(), 1);
    assert_eq!(contents(&mut plan.initrds[0]), "the initrd");
    assert_eq!(plan.entries.len(), 3);
}

#[test]
fn debian_on_the_first_partition_of_a_gpt() {
    if !can_make() {
        return;
    }
    for sector in [512, 4096] {
        let image = Image::new(DISK_BYTES);
        image.gpt(sector, &[mib(2, 32), mib(40, 8)]);
        debian(&image, mib(2, 32), &[]);
        is_debian(&image, "partition 1 (ext4): /boot/grub/grub.cfg");
    }
}

#[test]
fn every_vintage_of_the_file_system() {
    if !can_make() {
        return;
    }
    let vintages: [&[&str]; 5] = [
        &["-t", "ext2"],
        &["-t", "ext3"],
        &["-t", "ext4"],
        &["-O", "^64bit,^metadata_csum"],
        &["-b", "1024"],
    ];
    for vintage in vintages {
        let image = Image::new(DISK_BYTES);
        image.gpt(512, &[mib(2, 32)]);
        debian(&image, mib(2, 32), vintage);
        is_debian(&image, "partition 1 (ext4): /boot/grub/grub.cfg");
    }
}

#[test]
fn the_backup_gpt_is_used_when_the_primary_is_broken() {
    if !can_make() {
        return;
    }
    // A bit of the header, and a bit of the entries.
    for at in [512 + 40, 1024 + 32] {
        let image = Image::new(DISK_BYTES);
        image.gpt(512, &[mib(2, 32)]);
        debian(&image, mib(2, 32), &[]);
        image.write(at, &[0x55]);
        is_debian(&image, "partition 1 (ext4): /boot/grub/grub.cfg");
    }
}

#[test]
fn a_file_system_without_a_table() {
    if !can_make() {
        return;
    }
    let image = Image::new(DISK_BYTES);
    debian(&image, mib(0, 64), &[]);
    is_debian(&image, "the disk (no partition table, ext4): /boot/grub/grub.cfg");
}

#[test]
fn a_logical_partition_of_an_mbr() {
    if !can_make() {
        return;
    }
    let image = Image::new(DISK_BYTES);
    image.mbr(&[mib(1, 4)], &[mib(8, 8), mib(20, 32)]);
    debian(&image, mib(20, 32), &[]);
    is_debian(&image, "partition 6 (ext4): /boot/grub/grub.cfg");
}

#[test]
fn entries_are_chosen_by_title_id_and_position() {
    if !can_make() {
        return;
    }
    let image = Image::new(DISK_BYTES);
    image.gpt(512, &[mib(2, 32)]);
    debian(&image, mib(2, 32), &[]);
    let title = format!(
        "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux {KERNEL} (recovery mode)"
    );
    for wanted in [title.as_str(), "2", &format!("gnulinux-{KERNEL}-recovery-{ROOT}")] {
        let plan = image.find_entry(Some(wanted)).unwrap();
        assert_eq!(plan.title, title);
        assert_eq!(plan.cmdline, format!("root=UUID={ROOT} ro single dis_ucode_ldr"));
    }
}

#[test]
fn a_saved_default_is_booted() {
    if !can_make() {
        return;
    }
    let image = Image::new(DISK_BYTES);
    let script = fixture("debian12.cfg").replace("set default=\"0\"", "set default=\"${saved_entry}\"");
    let env = format!(
        "# GRUB Environment Block\nsaved_entry=gnulinux-advanced-{ROOT}>gnulinux-{KERNEL}-recovery-{ROOT}\n####"
    );
    let kernel = format!("/boot/vmlinuz-{KERNEL}");
    let initrd = format!("/boot/initrd.img-{KERNEL}");
    let tree = [
        ("/boot/grub/grub.cfg", script.as_str()),
        ("/boot/grub/grubenv", &env),
        (&kernel, "k"),
        (&initrd, "i"),
    ];
    image.gpt(512, &[mib(2, 32)]);
    image.ext4(mib(2, 32), ROOT, &tree, &[]);
    assert!(image.find().unwrap().title.ends_with("(recovery mode)"));
}

#[test]
fn a_boot_partition_of_its_own() {
    if !can_make() {
        return;
    }
    let image = Image::new(DISK_BYTES);
    image.gpt(512, &[mib(1, 2), mib(4, 16), mib(24, 32)]);
    let (kernel, initrd) = (format!("/vmlinuz-{KERNEL}"), format!("/initrd.img-{KERNEL}"));
    let tree = [("/grub/grub.cfg", &*fixture("debian12-boot.cfg")), (&kernel, "kernel"), (&initrd, "initrd")];
    image.ext4(mib(4, 16), BOOT, &tree, &[]);
    image.ext4(mib(24, 32), ROOT, &[("/etc/hostname", "x")], &[]);
    let mut plan = image.find().unwrap();
    assert_eq!(plan.source, "partition 2 (ext4): /grub/grub.cfg");
    assert!(plan.cmdline.starts_with(&format!("root=UUID={ROOT} ro")), "{}", plan.cmdline);
    assert_eq!((contents(&mut plan.kernel), plan.kernel.path), ("kernel".to_owned(), kernel));
}

#[test]
fn a_search_leads_from_the_script_to_another_partition() {
    if !can_make() {
        return;
    }
    let image = Image::new(DISK_BYTES);
    image.mbr(&[mib(1, 16), mib(20, 32)], &[]);
    let script =
        "search -l -s root system\nif [ -f /vmlinuz ]; then\nlinux /vmlinuz a=1 b\ninitrd /one /two\nfi\n";
    image.ext4(mib(1, 16), BOOT, &[("/boot/grub/grub.cfg", script)], &[]);
    let script = script.replace("-l -s root", "--label --set=root");
    image.ext4(mib(1, 16), BOOT, &[("/boot/grub/grub.cfg", &script)], &[]);
    let tree = [("/vmlinuz", "->boot/../k"), ("/k", "kernel"), ("/one", "1"), ("/boot/two", "2")];
    image.ext4(mib(20, 32), ROOT, &tree, &["-L", "system"]);
    let mut plan = image.find().unwrap();
    assert_eq!((plan.kernel.path.as_str(), plan.cmdline.as_str()), ("/k", "a=1 b"));
    assert_eq!(plan.initrds.iter_mut().map(contents).collect::<Vec<_>>(), ["1", "2"]);
}

const FEDORA_OLD: &str = "title Fedora Linux (6.8.5-301.fc40.x86_64) 40\nversion 6.8.5-301.fc40.x86_64\n\
    linux /vmlinuz-6.8.5\ninitrd /initramfs-6.8.5.img $tuned_initrd\noptions $kernelopts $tuned_params\n";
const FEDORA_NEW: &str = "title Fedora Linux (6.10.1-200.fc40.x86_64) 40\nversion 6.10.1-200.fc40.x86_64\n\
    linux /vmlinuz-6.10.1\ninitrd /initramfs-6.10.1.img $tuned_initrd\noptions root=UUID=literal ro\n";

/// Fedora's `/boot`, with what `grubenv` says.
fn fedora(image: &Image, grubenv: &str) {
    image.gpt(512, &[mib(1, 2), mib(4, 16), mib(24, 32)]);
    let tree = [
        ("/grub2/grub.cfg", &*fixture("fedora.cfg")),
        ("/grub2/grubenv", grubenv),
        ("/loader/entries/4f2d-6.8.5-301.fc40.x86_64.conf", FEDORA_OLD),
        ("/loader/entries/4f2d-6.10.1-200.fc40.x86_64.conf", FEDORA_NEW),
        ("/vmlinuz-6.8.5", "old"),
        ("/initramfs-6.8.5.img", "old initrd"),
        ("/vmlinuz-6.10.1", "new"),
        ("/initramfs-6.10.1.img", "new initrd"),
    ];
    image.ext4(mib(4, 16), BOOT, &tree, &[]);
}

#[test]
fn fedoras_entries_by_blscfg_the_newest_first() {
    if !can_make() {
        return;
    }
    let image = Image::new(DISK_BYTES);
    fedora(&image, "# GRUB Environment Block\n###");
    let plan = image.find().unwrap();
    assert_eq!(plan.source, "partition 2 (ext4): /grub2/grub.cfg");
    assert_eq!(
        (plan.kernel.path.as_str(), plan.cmdline.as_str()),
        ("/vmlinuz-6.10.1", "root=UUID=literal ro")
    );
    assert_eq!(plan.entries.len(), 2);
}

#[test]
fn fedoras_saved_entry_and_kernel_options() {
    if !can_make() {
        return;
    }
    let image = Image::new(DISK_BYTES);
    fedora(
        &image,
        "# GRUB Environment Block\nsaved_entry=4f2d-6.8.5-301.fc40.x86_64\ntuned_params=isolcpus=1\n###",
    );
    let plan = image.find().unwrap();
    assert_eq!(plan.kernel.path, "/vmlinuz-6.8.5");
    assert_eq!(plan.cmdline, format!("root=UUID={ROOT} ro rhgb quiet isolcpus=1"));
    assert_eq!(plan.initrds.len(), 1);
}

#[test]
fn loader_entries_without_a_grub() {
    if !can_make() {
        return;
    }
    let image = Image::new(DISK_BYTES);
    let tree = [
        (
            "/boot/loader/entries/a.conf",
            "title A\nlinux /vmlinuz\ninitrd /initrd\noptions root=/dev/vda1 ro\noptions quiet\n",
        ),
        ("/boot/vmlinuz", "kernel"),
        ("/boot/initrd", "initrd"),
    ];
    image.ext4(mib(0, 64), ROOT, &tree, &[]);
    let plan = image.find().unwrap();
    assert_eq!((plan.title.as_str(), plan.cmdline.as_str()), ("A", "root=/dev/vda1 ro quiet"));
    assert_eq!(plan.kernel.path, "/boot/vmlinuz");
    assert_eq!(plan.source, "the disk (no partition table, ext4): /boot/loader/entries");
}

#[test]
fn alpines_extlinux() {
    if !can_make() {
        return;
    }
    let image = Image::new(DISK_BYTES);
    let config = "DEFAULT menu.c32\nLABEL virt\n  MENU DEFAULT\n  MENU LABEL Linux virt\n  LINUX vmlinuz-virt\n  \
                  INITRD initramfs-virt\n  APPEND root=UUID=1 modules=ext4\n";
    let tree = [("/boot/extlinux.conf", config), ("/boot/vmlinuz-virt", "k"), ("/boot/initramfs-virt", "i")];
    image.ext4(mib(0, 64), ROOT, &tree, &[]);
    let plan = image.find().unwrap();
    assert_eq!((plan.title.as_str(), plan.kernel.path.as_str()), ("Linux virt", "/boot/vmlinuz-virt"));
}

#[test]
fn the_last_resort_says_that_it_is_one() {
    if !can_make() {
        return;
    }
    let image = Image::new(DISK_BYTES);
    let tree = [
        ("/vmlinuz", "->boot/vmlinuz-1"),
        ("/initrd.img", "->/boot/initrd-1"),
        ("/boot/vmlinuz-1", "kernel"),
        ("/boot/initrd-1", "initrd"),
        ("/etc/fstab", "PARTUUID=12 / ext4 rw 0 1\n"),
    ];
    image.gpt(512, &[mib(2, 32)]);
    image.ext4(mib(2, 32), ROOT, &tree, &[]);
    let mut plan = image.find().unwrap();
    assert_eq!(plan.cmdline, "root=PARTUUID=12 ro");
    assert_eq!(plan.kernel.path, "/boot/vmlinuz-1");
    assert_eq!(contents(&mut plan.initrds[0]), "initrd");
    assert_eq!(plan.source, "partition 1 (ext4): /vmlinuz, no boot configuration; root from /etc/fstab");
}
