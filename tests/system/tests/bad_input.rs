//! What a tired operator gets wrong: each mistake gets one line that names it and the remedy, a documented exit code, and
//! leaves nothing running.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rhizomorph_link::Identity;
use system_tests::{has_kvm, program, run};

struct Mistake {
    dir: tempfile::TempDir,
    endophyte: PathBuf,
}

impl Mistake {
    fn new() -> Option<Self> {
        let endophyte = program("endophyte")?;
        let dir = tempfile::tempdir().unwrap();
        for name in ["node", "other"] {
            Identity::generate().unwrap().save(&dir.path().join(format!("{name}.key"))).unwrap();
        }
        Some(Self { dir, endophyte })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn spec(&self, text: &str) -> PathBuf {
        let path = self.path("vm.toml");
        fs::write(&path, text).unwrap();
        path
    }

    /// Runs `endophyte` and demands its exit code and words in its message.
    fn expect(&self, args: &[&str], code: i32, words: &[&str]) {
        let output = run(Command::new(&self.endophyte).args(args));
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
        for word in words {
            assert!(told.contains(word), "{args:?} should mention {word:?}: {told}");
        }
    }

    fn run_spec(&self, text: &str, words: &[&str]) {
        let spec = self.spec(text);
        self.expect(&["run", "--spec", text_of(&spec)], 3, words);
    }
}

fn text_of(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn guest() -> Option<String> {
    program("native-guest").map(|path| format!("kernel = {path:?}"))
}

#[test]
fn wrong_specs_are_named() {
    let Some(m) = Mistake::new() else { return };
    let Some(kernel) = guest() else { return };
    m.expect(&["run", "--spec", "/no/such/vm.toml"], 3, &["/no/such/vm.toml", "check the path"]);
    m.run_spec("name = 7", &["name"]);
    m.run_spec("name = \"x\"\nvcpus = 1\nram_mib = 256\nkernel = \"/etc/hostname\"\n", &["kernel", "ELF"]);
    m.run_spec("name = \"x\"\nvcpus = 1\nram_mib = 256\nkernel = \"/no/such\"\n", &["kernel", "/no/such"]);
    m.run_spec(&format!("name = \"x\"\nvcpus = 99\nram_mib = 256\n{kernel}\n"), &["vcpus"]);
    m.run_spec(&format!("name = \"x\"\nvcpus = 1\nram_bytes = 4097\n{kernel}\n"), &["ram_bytes"]);
    m.run_spec(&format!("name = \"x\"\nvcpus = 1\nram_mib = 256\ncolour = 1\n{kernel}\n"), &["colour"]);
    let card = "[[net]]\ntap = \"tap0\"\nmac = \"ff:ff:ff:ff:ff:ff\"\n";
    m.run_spec(&format!("name = \"x\"\nvcpus = 1\nram_mib = 256\n{kernel}\n{card}"), &["mac"]);
}

#[test]
fn wrong_keys_and_tickets_are_named() {
    let Some(m) = Mistake::new() else { return };
    let Some(kernel) = guest() else { return };
    let spec = m.spec(&format!("name = \"x\"\nvcpus = 1\nram_mib = 64\n{kernel}\n"));
    let key = m.path("node.key");
    let other = Identity::load(&m.path("other.key")).unwrap().peer_key();
    let run_dir = m.path("run");
    let base = ["active", "--spec", text_of(&spec), "--run-dir", text_of(&run_dir)];
    let with = |rest: &[&str], code, words: &[&str]| m.expect(&[&base, rest].concat(), code, words);
    let replica = format!("{other}@127.0.0.1:9");
    with(&["--key", "/no/such.key", "--arbiter", &replica, "--replica", &replica], 3, &["/no/such.key"]);
    with(&["--key", text_of(&key), "--arbiter", "nonsense", "--replica", &replica], 2, &["KEY@ADDRESS"]);
    m.expect(&["keygen", "--out", text_of(&key)], 3, &["node.key"]);
    assert_eq!(m.dir.path().read_dir().unwrap().count(), 3, "a run folder was left behind");
}

#[test]
fn an_unreachable_arbiter_is_named_and_nothing_is_left_running() {
    let Some(m) = Mistake::new() else { return };
    let Some(kernel) = guest() else { return };
    if !has_kvm() {
        return;
    }
    let spec = m.spec(&format!("name = \"x\"\nvcpus = 1\nram_mib = 64\n{kernel}\n"));
    let other = Identity::load(&m.path("other.key")).unwrap().peer_key();
    let (key, run_dir, nowhere) = (m.path("node.key"), m.path("run"), format!("{other}@127.0.0.1:9"));
    let args = ["active", "--spec", text_of(&spec), "--key", text_of(&key), "--run-dir", text_of(&run_dir)];
    let rest = ["--arbiter", &nowhere, "--replica", &nowhere];
    m.expect(&[&args[..], &rest[..]].concat(), 7, &["arbiter", "127.0.0.1:9"]);
}
