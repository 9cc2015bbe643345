//! Debian goes on in another process: from a snapshot, and by live migration.

use mycelium_lab::Wire;
use mycelium_lab::net::GUEST_TAP;

use super::bench::{Bench, ENDOPHYTE, SECOND_TAP, spec};
use super::guest::{Debian, GUEST_VSOCK};
use super::redis::{Counting, Redis};

const SNAPSHOT: &str = "/run/carrier/debian.snap";
const SPEC: &str = "/lab/again.toml";

/// A process that writes the number of its round into a file, for ever.
const TICKER: &str =
    "(n=0; while :; do n=$((n+1)); echo $n >/dev/shm/ticks; sleep 0.1; done) & echo $! >/dev/shm/pid";

#[test]
#[ignore = "boots a host and Debian in it, minutes on two cores; run with --ignored"]
fn debian_on_qcow2_with_two_processors_goes_on_from_a_snapshot() {
    let bench = Bench::new(1, 0);
    let disk = bench.qcow2(0);
    let debian = Debian::boot(&bench, &disk, 2);
    assert_eq!(debian.run("nproc"), "2\n");
    debian
        .run("dd if=/dev/urandom of=/root/data bs=1M count=16 conv=fsync && sha256sum /root/data >/root/sum");
    debian.run("sync; echo 3 >/proc/sys/vm/drop_caches; sha256sum -c /root/sum");
    debian.run(TICKER);
    let mut redis = Redis::connect();
    redis.set("before", b"the snapshot");
    let ticks = ticks(&debian);
    let booted = debian.run("cat /proc/sys/kernel/random/boot_id");
    let saved = debian.vm(&["snapshot", "--to", SNAPSHOT, "--stop"]);
    println!("saved: {saved}");
    debian.ends();

    bench.hosts[0].write_file(SPEC, 0o644, spec(&disk, 2, GUEST_TAP, GUEST_VSOCK).as_bytes()).unwrap();
    let again =
        Debian::start(&bench, 0, &format!("run --spec {SPEC} --restore {SNAPSHOT}"), "/run/again.sock");
    again.goes_on_from(&debian);
    // The same shell, the same boot, the same process; its connections are as alive as their peers.
    assert_eq!(again.run("cat /proc/sys/kernel/random/boot_id"), booted);
    again.run("kill -0 $(cat /dev/shm/pid)");
    assert!(self::ticks(&again) >= ticks);
    assert_eq!(redis.get("before"), b"the snapshot");
    again.run("sync; echo 3 >/proc/sys/vm/drop_caches; sha256sum -c /root/sum");
    again.order("poweroff");
    again.ends();
}

#[test]
#[ignore = "boots a host and Debian in it, minutes on two cores; run with --ignored"]
fn debian_moves_while_it_works() {
    let bench = Bench::new(1, 0);
    let disk = bench.qcow2(0);
    let [here, there] =
        [("here", GUEST_TAP), ("there", SECOND_TAP)].map(|(name, tap)| End::new(&bench, name, tap, &disk));
    let debian =
        Debian::start(&bench, 0, &format!("run --spec {} --key {}", here.spec, here.key), "/run/here.sock");
    debian.log_in();
    debian
        .run("dd if=/dev/urandom of=/root/data bs=1M count=16 conv=fsync && sha256sum /root/data >/root/sum");
    debian.run("dd if=/dev/urandom of=/dev/shm/data bs=1M count=64 && sha256sum /dev/shm/data >/dev/shm/sum");
    debian.run(TICKER);
    debian.run("(while :; do dd if=/dev/urandom of=/dev/shm/churn bs=64k count=16 conv=notrunc; done) >/dev/null 2>&1 &");
    let (booted, before) = (debian.run("cat /proc/sys/kernel/random/boot_id"), ticks(&debian));

    let address = format!("{}:7800", bench.net.host_address(0, Wire::Management));
    let command =
        format!("run --spec {} --key {} --incoming {address} --allow {}", there.spec, there.key, here.public);
    let moved = Debian::start(&bench, 0, &command, "/run/there.sock");
    let counting = Counting::new();
    counting.during(|client| {
        counting.wait_for(20, client);
        moved.waits_for_its_guest();
        let ticket = format!("{}@{address}", there.public);
        println!("moved: {}", debian.vm(&["migrate", "--to", &ticket, "--downtime-ms", "2000"]));
        debian.ends();
        counting.wait_for(20, client);
    });
    moved.goes_on_from(&debian);
    assert_eq!(moved.run("cat /proc/sys/kernel/random/boot_id"), booted);
    moved.run("kill -0 $(cat /dev/shm/pid)");
    assert!(ticks(&moved) > before);
    moved.run("sha256sum -c /dev/shm/sum && echo 3 >/proc/sys/vm/drop_caches && sha256sum -c /root/sum");
    moved.order("poweroff");
    moved.ends();
}

/// One side of a move.
struct End {
    spec: String,
    key: String,
    public: String,
}

impl End {
    fn new(bench: &Bench, name: &str, tap: &str, disk: &str) -> End {
        let (text, key) = (format!("/lab/{name}.toml"), format!("/lab/{name}.key"));
        let content = spec(disk, 1, tap, &format!("/run/vsock.{name}"));
        bench.hosts[0].write_file(&text, 0o644, content.as_bytes()).unwrap();
        let public = bench.exec(0, &[ENDOPHYTE, "keygen", "--out", &key]).trim().to_owned();
        End { spec: text, key, public }
    }
}

fn ticks(debian: &Debian<'_>) -> u64 {
    debian.run("cat /dev/shm/ticks").trim().parse().unwrap()
}
