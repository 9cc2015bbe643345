//! A full disk: the error says how much is missing, and everything is as before.

use std::fs;
use std::path::Path;
use std::process::Command;

use endophyte_snapshot::{SaveError, Snapshot};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::support::{Ram, names, save};

const FOLDER: &str = "SNAPSHOT_TEST_FULL_FOLDER";
const LIMIT: &str = "SNAPSHOT_TEST_FILE_LIMIT";

/// Saves much where little has room; run in a process of its own, by the tests below.
#[test]
#[ignore = "the other half of a_full_disk and a_size_limit"]
fn save_where_there_is_no_room() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let path = folder.join("vm.snapshot");
    save(&Ram::random(32, 9, 1), &path).unwrap();
    let large = Ram::random(4096, 9, 2);
    if std::env::var_os(LIMIT).is_some() {
        // SAFETY: SIGXFSZ is ignored from here on; no handler runs.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        setrlimit(Resource::Fsize, Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) }).unwrap();
    }
    let before = fs::read(&path).unwrap();
    let refused = save(&large, &path).unwrap_err();
    let SaveError::Room { part, needed, free, .. } = &refused else { panic!("{refused}") };
    assert_eq!(*part, "page contents");
    // Nearly all of 16 MiB, and an index; of a disk of 2 MiB that holds the small one too.
    assert!((12 << 20..17 << 20).contains(needed), "{refused}");
    assert!(std::env::var_os(LIMIT).is_some() || (1 << 20..2 << 20).contains(free), "{refused}");
    assert!(refused.to_string().contains(path.to_str().unwrap()), "{refused}");
    assert_eq!(names(folder), ["vm.snapshot"]);
    assert_eq!(fs::read(&path).unwrap(), before);
    Snapshot::open(&path).unwrap().verify(&mut |_, _| ()).unwrap();
    println!("{refused}");
}

/// Runs the test above by a command that ends with the program and its arguments; whether it could be run.
fn run(mut command: Command, folder: &Path) {
    command.args(["--exact", "room::save_where_there_is_no_room", "--ignored", "--nocapture"]);
    let output = command.env(FOLDER, folder).output().unwrap();
    let told =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{told}");
    assert!(told.contains("no room for page contents") && told.contains("1 passed"), "{told}");
}

#[test]
fn a_full_disk_leaves_the_old_snapshot_and_nothing_else() {
    let can_mount = Command::new("unshare").args(["--mount", "true"]).output();
    if !can_mount.is_ok_and(|output| output.status.success()) {
        return eprintln!("SKIPPED: no right to make a mount namespace");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    let mount = r#"mount -t tmpfs -o size=2m none "$1" && shift && exec "$@""#;
    command.args(["--mount", "sh", "-c", mount, "sh"]).arg(folder.path());
    command.arg(std::env::current_exe().unwrap());
    run(command, folder.path());
}

#[test]
fn a_size_limit_leaves_the_old_snapshot_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(LIMIT, "1");
    run(command, folder.path());
}
