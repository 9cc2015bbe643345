//! Debian goes on in another process: from a snapshot, and by live migration.

use mycelium_lab::net::GUEST_TAP;

use super::bench::{Bench, spec};
use super::guest::{Debian, GUEST_VSOCK};
use super::redis::Redis;

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

fn ticks(debian: &Debian<'_>) -> u64 {
    debian.run("cat /dev/shm/ticks").trim().parse().unwrap()
}
