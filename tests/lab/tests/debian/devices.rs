//! Everything in the machine works for Debian: its disks, its card, its socket device, its balloon, its buttons.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use mycelium_lab::{ExitStatus, Stream};
use sha2::{Digest, Sha256};

use super::bench::{ADDRESS, Bench, RAW_DISK, VSOCK};
use super::guest::{Debian, GUEST_VSOCK, PATIENCE, until};
use super::redis::Redis;

/// Bytes sent over TCP in each direction.
const STREAM_BYTES: u32 = 100 << 20;
const STREAM_PORT: u16 = 5000;
/// Bytes over a vsock connection in each direction.
const VSOCK_BYTES: &str = "1000000";

#[test]
#[ignore = "boots a host and Debian in it, minutes on two cores; run with --ignored"]
fn debian_boots_from_its_disk_and_everything_in_it_works() {
    let bench = Bench::new(1, 0);
    let debian = Debian::boot(&bench, RAW_DISK, 1);
    assert_eq!(debian.run("systemctl is-active systemd-logind"), "active\n");
    bench.ping();
    Redis::connect().ping();
    a_hundred_megabytes_come_back_whole(&debian);
    disk_writes_are_verified(&debian);
    vsock_echoes(&bench, &debian);
    the_balloon_takes_and_gives_back(&debian);
    debian.order("reboot");
    debian.log_in();
    assert_eq!(debian.run("systemctl is-system-running --wait"), "running\n");
    debian.vm(&["power-button"]);
    debian.ends();
}

/// Debian receives a stream, says what it has, and sends it back.
fn a_hundred_megabytes_come_back_whole(debian: &Debian<'_>) {
    debian.run(&format!(
        "(socat -u TCP-LISTEN:{STREAM_PORT},reuseaddr OPEN:/dev/shm/got,creat,trunc; echo received) >/dev/shm/state 2>&1 &"
    ));
    let words = (0..STREAM_BYTES / 4).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes());
    let sent: Vec<u8> = words.flatten().collect();
    let hash: String = Sha256::digest(&sent).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut stream = connect();
    let begun = Instant::now();
    stream.write_all(&sent).unwrap();
    drop(stream);
    debian.run("until grep -q received /dev/shm/state; do sleep 0.1; done");
    println!("100 MiB to the guest in {:?}", begun.elapsed());
    assert_eq!(debian.run("sha256sum </dev/shm/got"), format!("{hash}  -\n"));
    debian.run(&format!("socat -u OPEN:/dev/shm/got TCP-LISTEN:{STREAM_PORT},reuseaddr >/dev/null 2>&1 &"));
    let mut stream = connect();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut back, begun) = (Vec::new(), Instant::now());
    stream.read_to_end(&mut back).unwrap();
    println!("100 MiB from the guest in {:?}", begun.elapsed());
    assert!(back == sent, "{} bytes came back, and not as they were sent", back.len());
    debian.run("rm /dev/shm/got");
}

/// The guest may not listen yet.
fn connect() -> TcpStream {
    let mut found = None;
    until("the guest listens", PATIENCE, || {
        found = TcpStream::connect((ADDRESS, STREAM_PORT)).ok();
        found.is_some()
    });
    found.expect("waited for")
}

/// fio reads back and compares all it wrote to the second disk, flushes between.
fn disk_writes_are_verified(debian: &Debian<'_>) {
    assert_eq!(debian.run("cat /sys/block/vdb/serial").trim(), "scratch");
    let said = debian.run(
        "fio --name=verify --filename=/dev/vdb --direct=1 --rw=randwrite --bsrange=512-128k --size=32m --verify=crc32c \
         --do_verify=1 --verify_fatal=1 --ioengine=libaio --iodepth=16 --fdatasync=64 --minimal >/tmp/fio && echo verified",
    );
    assert_eq!(said, "verified\n");
    debian.run("blkdiscard -o 0 -l 1048576 /dev/vdb && cmp -n 1048576 /dev/vdb /dev/zero");
}

/// Connections both ways.
fn vsock_echoes(bench: &Bench, debian: &Debian<'_>) {
    debian.run("socat VSOCK-LISTEN:5000,reuseaddr EXEC:cat >/dev/null 2>&1 &");
    let call = || bench.hosts[0].exec(&[VSOCK, "call", GUEST_VSOCK, "5000", VSOCK_BYTES]).unwrap();
    until("the guest echoes", PATIENCE, || call().status == ExitStatus::Code(0));

    let server = bench.hosts[0].spawn(&[VSOCK, "serve", &format!("{GUEST_VSOCK}_5001")]).unwrap();
    server.wait_line(Stream::Stdout, "waits at", PATIENCE).unwrap();
    debian.run(&format!("head -c {VSOCK_BYTES} /dev/urandom >/dev/shm/sent"));
    debian.run("socat -t 60 - VSOCK-CONNECT:2:5001 </dev/shm/sent | cmp - /dev/shm/sent");
    assert_eq!(server.wait(PATIENCE).unwrap(), ExitStatus::Code(0));
}

/// The balloon lets go when the guest runs out of memory, so Linux counts what it gave as used, not as gone.
fn the_balloon_takes_and_gives_back(debian: &Debian<'_>) {
    let free = || {
        let said =
            debian.run("sync; echo 3 >/proc/sys/vm/drop_caches; awk '/MemFree/ {print $2}' /proc/meminfo");
        said.trim().parse::<u64>().unwrap()
    };
    let given = || debian.metric("endophyte_balloon_actual_bytes");
    let before = free();
    debian.vm(&["balloon", "--take", "128M"]);
    until("the guest has given 128 MiB", PATIENCE, || given() == 128 << 20);
    let meanwhile = free();
    assert!(meanwhile + (100 << 10) < before, "{before} KiB were free, and {meanwhile} still are");
    debian.vm(&["balloon", "--take", "0"]);
    until("the guest has its memory again", PATIENCE, || given() == 0);
    let after = free();
    assert!(after > meanwhile + (100 << 10), "{meanwhile} KiB were free, and only {after} are");
}
