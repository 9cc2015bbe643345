//! Debian goes on elsewhere when its host is lost: a whole system, with its root in memory, and with its root on a replicated disk.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mycelium_lab::images::static_binary;
use mycelium_lab::{Stream, Wire};

use super::bench::{Bench, diskless_spec, replicated_spec};
use super::guest::{BOOT_PATIENCE, Debian, until};
use super::redis::{Counting, Redis};

const SPEC: &str = "/lab/debian.toml";
const KEY: &str = "/lab/node.key";
const RUN_DIR: &str = "/lab/run";
const API: &str = "/run/protected.sock";
const ARBITER_PORT: u16 = 7600;
const PATH_PORT: u16 = 7700;
const PATHS: usize = 2;
/// An emulated processor keeps nobody's beat: everything is stretched.
const TIMING: &str = "--epoch-ms 200 --epoch-min-ms 100 --heartbeat-ms 100 --detect-ms 3000";
/// For the replica to hold all of the guest, or of its disk.
const PATIENCE: Duration = Duration::from_secs(900);

/// Every write is on the disk before it is answered.
const REDIS_ON_DISK: &str = "sed -i 's/^appendonly .*/appendonly yes/; s/^appendfsync .*/appendfsync always/' /etc/redis/redis.conf \
     && systemctl restart redis-server";
/// Watches the guest's clocks for a step back, which it writes down.
const CLOCK_WATCH: &str = r#"(p=0; w=0; while :; do read u _ </proc/uptime; u=${u%.*}${u#*.}; t=$(date +%s%N); \
     [ $u -lt $p ] && echo "uptime $p $u" >>/dev/shm/back; [ $t -lt $w ] && echo "wall $w $t" >>/dev/shm/back; \
     p=$u; w=$t; echo $p >/dev/shm/clock; sleep 0.2; done) >/dev/null 2>&1 &"#;
/// What is on the disk is a file system: nothing is taken from what the guest remembers of it. By a loop device, because e2fsck
/// would try to write to a root it finds mounted, and wait for as long as that is frozen.
const FSCK: &str = "modprobe loop; sync; echo 3 >/proc/sys/vm/drop_caches; l=$(losetup -rf --show $(findmnt -no SOURCE /)); \
     fsfreeze -f /; timeout 200 e2fsck -fn $l; s=$?; fsfreeze -u /; losetup -d $l; (exit $s)";

#[test]
#[ignore = "boots two hosts and Debian on one of them, minutes on two cores; run with --ignored"]
fn debian_survives_the_loss_of_its_host() {
    let bench = Bench::new(2, PATHS);
    let protected = Protected::new(&bench, &diskless_spec());
    let _active = protected.active(1);
    let mut redis = Redis::connect();
    let kept: Vec<u8> = (0..1_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    redis.set("kept", &kept);
    let passive = protected.passive(1, 0, None);
    let counting = Counting::new();
    counting.during(|client| {
        counting.wait_for(50, client);
        protected.lose(0);
        counting.wait_for(50, client);
    });
    protected.goes_on(&passive, 2);
    // The connection from before, and what it knew.
    assert_eq!(redis.get("kept"), kept);
    println!("{} counted, none lost, none twice", counting.so_far());
}

/// The second loss is that of a host which took over, and a fresh one has copied the disk from it meanwhile.
#[test]
#[ignore = "boots three hosts and Debian on one of them, minutes on two cores; run with --ignored"]
fn debian_with_redis_on_a_replicated_disk_survives_two_losses() {
    let bench = Bench::new(3, PATHS);
    let disks: Vec<String> = (0..3).map(|host| bench.qcow2(host)).collect();
    let protected = Protected::new(&bench, &replicated_spec(&disks[0]));
    let first = protected.active(1);
    first.log_in();
    first.run(REDIS_ON_DISK);
    first.run(CLOCK_WATCH);
    let booted = first.run("cat /proc/sys/kernel/random/boot_id");
    until("Redis answers again", PATIENCE, Redis::answers);
    let counting = Counting::new();
    let mut third = None;
    counting.during(|client| {
        let second = protected.passive(1, 0, Some(2));
        counting.wait_for(50, client);
        protected.lose(0);
        counting.wait_for(50, client);
        protected.goes_on(&second, 2);
        let last = third.insert(protected.passive(2, 1, None));
        counting.wait_for(50, client);
        protected.lose(1);
        counting.wait_for(50, client);
        protected.goes_on(last, 3);
    });
    let counted = counting.so_far();
    println!("{counted} counted over two losses, none lost, none twice");
    let third = third.expect("started while it counted");
    third.goes_on_from(&first);
    assert_eq!(third.run("cat /proc/sys/kernel/random/boot_id"), booted);
    assert_eq!(third.run("cat /dev/shm/back 2>/dev/null; true"), "", "a clock of the guest went back");
    println!("{}", third.run(FSCK));
    println!("{}", third.run("redis-check-aof /var/lib/redis/appendonlydir/*.aof.manifest"));
    // Read back from the disk by a process that remembers nothing.
    third.run("systemctl restart redis-server");
    until("Redis answers again", PATIENCE, Redis::answers);
    assert_eq!(Redis::connect().get("count"), counted.to_string().into_bytes());
    third.order("poweroff");
    third.ends();
}

/// A VM that is protected between the hosts, and who decides about it.
struct Protected<'a> {
    bench: &'a Bench,
    keys: Keys,
    _arbiter: Arbiter,
}

impl<'a> Protected<'a> {
    fn new(bench: &'a Bench, spec: &str) -> Self {
        let keys = Keys::make(bench);
        let arbiter = Arbiter::start(bench, &keys);
        for (host, key) in bench.hosts.iter().zip(&keys.nodes) {
            host.write_file(SPEC, 0o644, spec.as_bytes()).unwrap();
            host.write_file(KEY, 0o600, &std::fs::read(&key.file).unwrap()).unwrap();
        }
        Self { bench, keys, _arbiter: arbiter }
    }

    /// Boots the VM on the first host, which keeps a replica on `replica` once there is one.
    fn active(&self, replica: usize) -> Debian<'a> {
        let active = self.endophyte(0, &format!("active --replica {}", self.ticket(replica)));
        // A booting system writes to all of its memory: on an emulated processor it is protected once it is up.
        until("Debian's Redis answers", BOOT_PATIENCE, Redis::answers);
        active
    }

    /// Starts a replica of what `active` runs, and waits until it holds the whole VM. Once it has taken over it keeps one itself.
    fn passive(&self, host: usize, active: usize, then: Option<usize>) -> Debian<'a> {
        let listens: Vec<String> = self.listens(host).iter().map(|at| format!("--listen {at}")).collect();
        let then = then.map_or(String::new(), |then| format!("--replica {}", self.ticket(then)));
        let allow = &self.keys.nodes[active].public;
        let passive = self.endophyte(host, &format!("passive --allow {allow} {} {then}", listens.join(" ")));
        let status = format!("{RUN_DIR}/status.json");
        until("the replica is in sync", PATIENCE, || {
            let status = self.bench.hosts[host].read_file(&status).unwrap_or_default();
            String::from_utf8_lossy(&status).contains("\"listed\": true")
        });
        passive
    }

    fn lose(&self, host: usize) {
        self.bench.hosts[host].kill();
        self.bench.net.set_all_wires(host, false).unwrap();
    }

    fn goes_on(&self, at: &Debian<'_>, generation: u64) {
        let words = format!("goes on here as generation {generation}");
        at.vmm.wait_line(Stream::Stderr, &words, PATIENCE).unwrap();
    }

    fn endophyte(&self, host: usize, role: &str) -> Debian<'a> {
        let arbiter = format!("{}@{}", self.keys.arbiter.public, arbiter_address(self.bench));
        let command =
            format!("{role} --spec {SPEC} --key {KEY} --arbiter {arbiter} --run-dir {RUN_DIR} {TIMING}");
        Debian::start(self.bench, host, &command, API)
    }

    fn ticket(&self, host: usize) -> String {
        format!("{}@{}", self.keys.nodes[host].public, self.listens(host).join(","))
    }

    fn listens(&self, host: usize) -> Vec<String> {
        (0..PATHS).map(|path| self.bench.path(host, path, PATH_PORT)).collect()
    }
}

fn arbiter_address(bench: &Bench) -> String {
    format!("{}:{ARBITER_PORT}", bench.net.own_address(Wire::Management))
}

/// A key file and its public half.
struct Key {
    file: PathBuf,
    public: String,
}

/// Of the hosts' nodes and of the arbiter.
struct Keys {
    nodes: Vec<Key>,
    arbiter: Key,
}

impl Keys {
    fn make(bench: &Bench) -> Keys {
        let program = static_binary("endophyte", "endophyte").unwrap();
        let make = |name: &str| {
            let file = bench.folder.path().join(format!("{name}.key"));
            let made = Command::new(&program).args(["keygen", "--out"]).arg(&file).output().unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            Key { file, public: String::from_utf8(made.stdout).unwrap().trim().to_owned() }
        };
        Keys { nodes: bench.hosts.iter().map(|host| make(host.name())).collect(), arbiter: make("arbiter") }
    }
}

/// The arbiter, outside the hosts; it ends with this value.
struct Arbiter(Child);

impl Arbiter {
    fn start(bench: &Bench, keys: &Keys) -> Arbiter {
        let mut arbiter = Command::new(static_binary("mycelium", "mycelium").unwrap());
        arbiter
            .args(["arbiter", "run", "--listen", &arbiter_address(bench), "--key"])
            .arg(&keys.arbiter.file)
            .arg("--dir")
            .arg(bench.folder.path().join("arbiter"));
        for node in &keys.nodes {
            arbiter.args(["--allow", &node.public]);
        }
        let mut arbiter = arbiter.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
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
