//! What a tired operator gets wrong: each mistake gets one line that names it and the remedy, a documented exit code, and
//! leaves nothing running.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mycelium_lab::PrivateNamespace;
use rhizomorph_link::Identity;
use system_tests::process::{Running, ip};
use system_tests::{has_kvm, program, run, skip};

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

fn start(command: &mut Command) -> Running {
    Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
}

/// Waits until `ready`; the deadline only bounds a test that fails.
fn wait_until(what: &str, ready: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !ready() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_host_without_kvm_or_rights_is_explained() {
    let Some(m) = Mistake::new() else { return };
    let Some(guest) = program("native-guest") else { return };
    if !run(Command::new("unshare").args(["--mount", "true"])).status.success() {
        return skip("no right to make a mount namespace");
    }
    // Where another user may read them.
    let (endophyte, kernel) = (m.path("endophyte"), m.path("native-guest"));
    fs::copy(&m.endophyte, &endophyte).unwrap();
    fs::copy(guest, &kernel).unwrap();
    fs::set_permissions(m.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let spec = m.spec(&format!("name = \"x\"\nvcpus = 1\nram_mib = 64\nkernel = {kernel:?}\n"));
    let vm = format!("{} run --spec {}", text_of(&endophyte), text_of(&spec));
    let expect = |program: &str, args: &[&str], words: &[&str]| {
        let output = run(Command::new(program).args(args));
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{told}");
        assert!(words.iter().all(|word| told.contains(word)), "{told}");
    };
    let hidden = format!("mount -t tmpfs none /dev && exec {vm}");
    expect("unshare", &["--mount", "sh", "-c", &hidden], &["/dev/kvm", "load kvm_intel or kvm_amd"]);
    if has_kvm() {
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &vm];
        expect("setpriv", &nobody, &["/dev/kvm", "group that owns"]);
    }
}

#[test]
fn a_tap_in_use_is_named() {
    let Some(m) = Mistake::new() else { return };
    let Some(kernel) = guest() else { return };
    if !has_kvm() {
        return;
    }
    let Ok(_namespace) = PrivateNamespace::enter() else {
        return skip("no right to make a network namespace");
    };
    ip("tuntap add tap0 mode tap");
    ip("link set tap0 up");
    let card = "[[net]]\ntap = \"tap0\"\nmac = \"02:00:00:00:00:05\"\n";
    let spec = m.spec(&format!("name = \"x\"\nvcpus = 1\nram_mib = 64\nserial = \"null\"\n{kernel}\n{card}"));
    let args = ["run", "--spec", text_of(&spec)];
    let _first = start(Command::new(&m.endophyte).args(args));
    wait_until("the first VM to take the tap", || {
        let shown = run(Command::new("ip").args(["link", "show", "dev", "tap0"]));
        String::from_utf8_lossy(&shown.stdout).contains("LOWER_UP")
    });
    m.expect(&args, 4, &["tap0", "in use"]);
}

#[test]
fn machines_that_differ_are_not_paired_and_the_difference_is_named() {
    let Some(m) = Mistake::new() else { return };
    let (Some(kernel), Some(mycelium)) = (guest(), program("mycelium")) else { return };
    if !has_kvm() {
        return;
    }
    let (key, other) = (m.path("node.key"), m.path("other.key"));
    let public = |path: &Path| Identity::load(path).unwrap().peer_key().to_string();
    let (node, peer) = (public(&key), public(&other));
    let mut arbiter = start(
        Command::new(mycelium)
            .args(["arbiter", "run", "--listen", "127.0.0.1:0", "--key", text_of(&other), "--dir"])
            .arg(m.path("arbiter"))
            .args(["--allow", &node, "--allow", &peer]),
    );
    let listens = |child: &mut Running| {
        let mut line = String::new();
        BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        line.split_whitespace().find(|word| word.contains('@')).expect("a ticket").to_owned()
    };
    let arbiter_ticket = listens(&mut arbiter);
    let side = |role: &str, ram: u64, key: &Path, rest: &[&str]| {
        let spec = m.path(&format!("{role}.toml"));
        let text = format!("name = \"x\"\nvcpus = 1\nram_mib = {ram}\nserial = \"null\"\n{kernel}\n");
        fs::write(&spec, text).unwrap();
        let mut command = Command::new(&m.endophyte);
        command.args([role, "--spec", text_of(&spec), "--key", text_of(key), "--arbiter", &arbiter_ticket]);
        start(command.arg("--run-dir").arg(m.path(role)).args(rest))
    };
    let mut passive = side("passive", 64, &other, &["--allow", &node, "--listen", "127.0.0.1:0"]);
    let addresses = listens_on(&mut passive);
    let _active = side("active", 128, &key, &["--replica", &format!("{peer}@{addresses}")]);
    wait_until("the refusal", || {
        let events = fs::read_to_string(m.path("active").join("events.jsonl")).unwrap_or_default();
        events.contains("machines differ") && events.contains("ram_bytes")
    });
}

/// The addresses in what a passive side says first, `... waits for its active on [ADDRESS]`.
fn listens_on(passive: &mut Running) -> String {
    let mut line = String::new();
    BufReader::new(passive.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let inside = line.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.unwrap_or_else(|| panic!("no address in {line:?}")).0.replace(' ', "")
}
