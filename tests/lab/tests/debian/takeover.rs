//! Debian goes on elsewhere when its host is lost: a whole system, its root only read and laid over with memory.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mycelium_lab::images::static_binary;
use mycelium_lab::{Process, Stream, Wire};

use super::bench::{Bench, ENDOPHYTE, readonly_spec};
use super::guest::{BOOT_PATIENCE, until};
use super::redis::{Counting, Redis};

const SPEC: &str = "/lab/debian.toml";
const KEY: &str = "/lab/node.key";
const RUN_DIR: &str = "/lab/run";
const ARBITER_PORT: u16 = 7600;
const PATH_PORT: u16 = 7700;
const PATHS: usize = 2;
/// An emulated processor keeps nobody's beat: everything is stretched.
const TIMING: [&str; 8] =
    ["--epoch-ms", "200", "--epoch-min-ms", "100", "--heartbeat-ms", "100", "--detect-ms", "3000"];
/// For the replica to hold all of the guest.
const PATIENCE: Duration = Duration::from_secs(400);

#[test]
#[ignore = "boots two hosts and Debian on one of them, minutes on two cores; run with --ignored"]
fn debian_survives_the_loss_of_its_host() {
    let bench = Bench::new(2, PATHS);
    let pair = Pair::start(&bench);
    let mut redis = Redis::connect();
    let kept: Vec<u8> = (0..1_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    redis.set("kept", &kept);
    let passive = pair.protect();
    let counting = Counting::new();
    counting.during(|client| {
        counting.wait_for(50, client);
        bench.hosts[0].kill();
        bench.net.set_all_wires(0, false).unwrap();
        counting.wait_for(50, client);
    });
    passive.wait_line(Stream::Stdout, "goes on here as generation 2", PATIENCE).unwrap();
    // The connection from before, and what it knew.
    assert_eq!(redis.get("kept"), kept);
    println!("{} counted, none lost, none twice", counting.so_far());
}

/// A VM on the first host, and what it takes to protect it.
struct Pair<'a> {
    bench: &'a Bench,
    keys: Keys,
    _arbiter: Arbiter,
    _active: Process,
}

impl<'a> Pair<'a> {
    fn start(bench: &'a Bench) -> Pair<'a> {
        let keys = Keys::make(bench);
        let arbiter = Arbiter::start(bench, &keys);
        for (host, key) in keys.files.iter().enumerate().take(bench.hosts.len()) {
            bench.hosts[host].write_file(SPEC, 0o644, readonly_spec().as_bytes()).unwrap();
            bench.hosts[host].write_file(KEY, 0o600, &std::fs::read(key).unwrap()).unwrap();
        }
        let ticket = format!("{}@{}", keys.public[1], listens(bench).join(","));
        let active = endophyte(bench, &keys, 0, &["active", "--replica", &ticket]);
        // A booting system writes to all of its memory: on an emulated processor it is protected once it is up.
        until("Debian's Redis answers", BOOT_PATIENCE, Redis::answers);
        Pair { bench, keys, _arbiter: arbiter, _active: active }
    }

    /// Starts the replica, and waits until it holds the whole VM.
    fn protect(&self) -> Process {
        let listens = listens(self.bench);
        let mut role = vec!["passive", "--allow", &self.keys.public[0]];
        role.extend(listens.iter().flat_map(|listen| ["--listen", listen.as_str()]));
        let passive = endophyte(self.bench, &self.keys, 1, &role);
        let status = format!("{RUN_DIR}/status.json");
        until("the replica is in sync", PATIENCE, || {
            let status = self.bench.hosts[1].read_file(&status).unwrap_or_default();
            String::from_utf8_lossy(&status).contains("\"listed\": true")
        });
        passive
    }
}

fn listens(bench: &Bench) -> Vec<String> {
    (0..PATHS).map(|path| bench.path(1, path, PATH_PORT)).collect()
}

fn endophyte(bench: &Bench, keys: &Keys, host: usize, role: &[&str]) -> Process {
    let arbiter = format!("{}@{}", keys.public[2], arbiter_address(bench));
    let common = ["--spec", SPEC, "--key", KEY, "--arbiter", &arbiter, "--run-dir", RUN_DIR];
    let words: Vec<&str> = [ENDOPHYTE].iter().chain(role).chain(&common).chain(&TIMING).copied().collect();
    bench.hosts[host].spawn(&words).unwrap()
}

fn arbiter_address(bench: &Bench) -> String {
    format!("{}:{ARBITER_PORT}", bench.net.own_address(Wire::Management))
}

/// Key files of the two hosts' nodes and of the arbiter, and their public halves.
struct Keys {
    files: Vec<PathBuf>,
    public: Vec<String>,
}

impl Keys {
    fn make(bench: &Bench) -> Keys {
        let program = static_binary("endophyte", "endophyte").unwrap();
        let files: Vec<PathBuf> = (0..3).map(|n| bench.folder.path().join(format!("{n}.key"))).collect();
        let make = |file: &PathBuf| {
            let made = Command::new(&program).args(["keygen", "--out"]).arg(file).output().unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            String::from_utf8(made.stdout).unwrap().trim().to_owned()
        };
        Keys { public: files.iter().map(make).collect(), files }
    }
}

/// The arbiter, outside both hosts; it ends with this value.
struct Arbiter(Child);

impl Arbiter {
    fn start(bench: &Bench, keys: &Keys) -> Arbiter {
        let mut arbiter = Command::new(static_binary("mycelium", "mycelium").unwrap())
            .args(["arbiter", "run", "--listen", &arbiter_address(bench), "--key"])
            .arg(&keys.files[2])
            .arg("--dir")
            .arg(bench.folder.path().join("arbiter"))
            .args(["--allow", &keys.public[0], "--allow", &keys.public[1]])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(arbiter.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("listens"), "{line:?}");
        Arbiter(arbiter)
    }
}

impl Drop for Arbiter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
