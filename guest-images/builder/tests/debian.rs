//! Builds real images: needs root, Debian's archive and a few minutes, so it runs only when asked for (`-- --ignored`).

use std::fs;
use std::path::Path;
use std::process::Command;

use mycelium_images::debian::{DebianOptions, RootLogin, debian_image};
use mycelium_images::disk::{Format, inspect};
use mycelium_images::{Cache, Observer};

struct Told;

impl Observer for Told {
    fn step(&self, what: &str) {
        eprintln!("{what}");
    }
}

fn sha256(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().expect("sha256sum runs");
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().expect("it prints a hash").to_owned()
}

/// In a cache beside the usual one: on the same kind of file system, and never in a user's way.
#[test]
#[ignore = "needs root, Debian's archive and three minutes"]
fn two_builds_give_the_same_bytes() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder to build in");
    fs::write(folder.path().join("given"), "content").expect("a file to copy in");
    let options = DebianOptions {
        include: vec!["python3-minimal".to_owned()],
        copies: vec![
            format!("{}:/opt/given", folder.path().join("given").display()).parse().expect("SRC:DEST"),
        ],
        commands: vec!["test \"$(cat /opt/given)\" = content; echo run > /opt/by-command".to_owned()],
        root: RootLogin::Password("secret".to_owned()),
        ..DebianOptions::default()
    };
    let cache = Cache::at(folder.path().join("cache")).expect("a cache");
    let build = |rebuild| {
        let image = debian_image(&cache, &options, rebuild, &Told).expect("the image is built");
        let hashes =
            [Format::Raw, Format::Qcow2].map(|format| sha256(&image.file(format, &Told).expect("its file")));
        (image, hashes)
    };
    let (first, one) = build(false);
    let (again, same) = build(false);
    assert!(!first.cached && again.cached && one == same);
    let (_, other) = build(true);
    assert_eq!(one, other, "two builds from the same inputs differ");
    eprintln!("raw {} qcow2 {}", one[0], one[1]);
    let found = inspect(&first.file(Format::Qcow2, &Told).expect("its file")).expect("it can be read");
    assert_eq!((found.virtual_bytes, found.partitions.len()), (options.size, 2));
    let loops = fs::read_to_string("/proc/mounts").expect("mounts");
    assert!(!loops.contains(&*folder.path().to_string_lossy()), "a mount was left behind");
}
