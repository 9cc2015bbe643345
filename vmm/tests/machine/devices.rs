//! Sockets, console, entropy and balloon under a guest that uses them, alone and all together.

use std::any::Any;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Instant;

use endophyte_snapshot::lazy::{LazyMemory, LazyOptions, Region, Userfault};
use endophyte_snapshot::{FileMemory, Snapshot, SnapshotWriter};
use endophyte_vmm::memory::PageIndex;

use crate::native::{Native, RAM_MIB, Running, echoed};
use crate::support::PATIENCE;

const VSOCK: &str = "[vsock]\ncid = 5\nsocket = \"vsock\"\n";
const CONSOLE: &str = "[[console]]\nname = \"org.example.port\"\nsocket = \"console\"\n";

/// Bytes that are no two alike within reach of each other.
fn bytes(count: u32) -> Vec<u8> {
    (0..count).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect()
}

/// Talks to the echo at port 7, in several connections.
fn talk(running: &Running) {
    for count in [1, 1000, 200_000] {
        let message = bytes(count);
        let mut stream = running.connect(7);
        assert!(echoed(&mut stream, &message) == message, "{count} words came back otherwise");
    }
}

#[test]
fn programs_of_the_host_and_the_guest_reach_each_other() {
    let Some(native) = Native::new() else { return };
    let listener = UnixListener::bind(native.path("vsock_99")).unwrap();
    let running = native.boot("vsock=echo:7 vsock=connect:99", VSOCK);
    let (mut asker, _) = listener.accept().unwrap();
    let mut line = String::new();
    BufReader::new(&asker).read_line(&mut line).unwrap();
    asker.write_all(line.as_bytes()).unwrap();
    running.console.wait_text(0, "vsock: ok");
    talk(&running);
}

#[test]
fn a_port_nobody_listens_at_is_refused() {
    let Some(native) = Native::new() else { return };
    let running = native.boot("vsock=echo:7", VSOCK);
    let mut stream = UnixStream::connect(native.path("vsock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"CONNECT 8\n").unwrap();
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    talk(&running);
}

#[test]
fn a_restored_guest_hears_that_its_connections_are_gone() {
    let Some(native) = Native::new() else { return };
    let first = native.boot("vsock=echo:7", VSOCK);
    let mut stream = first.connect(7);
    assert_eq!(echoed(&mut stream, b"hello"), b"hello");
    let taken = first.take();
    drop(first);
    let second = native.build("vsock=echo:7", VSOCK);
    second.go_on(&taken);
    let from = second.console.wait_text(0, "vsock: reset");
    second.console.wait_text(from, "vsock: listening on 7");
    talk(&second);
}

#[test]
fn the_console_shows_and_takes_lines() {
    let Some(native) = Native::new() else { return };
    let _running = native.boot("hvc=echo", CONSOLE);
    type_lines(&native, "console: hello\n");
}

/// Expects a greeting on the console, and lines back.
fn type_lines(native: &Native, greeting: &str) {
    let mut client = BufReader::new(UnixStream::connect(native.path("console")).unwrap());
    client.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
    let mut said = String::new();
    client.read_line(&mut said).unwrap();
    assert_eq!(said, greeting);
    for n in 0..100 {
        let line = format!("line {n}\n");
        client.get_mut().write_all(line.as_bytes()).unwrap();
        said.clear();
        client.read_line(&mut said).unwrap();
        assert_eq!(said, line);
    }
}

#[test]
fn entropy_comes_and_does_not_repeat() {
    let Some(native) = Native::new() else { return };
    native.boot("rng=check", "rng = true").console.wait_text(0, "rng: ok");
}

/// Bytes of host memory behind the guest's.
fn resident(running: &Running) -> u64 {
    let stat = rustix::fs::fstat(running.machine.ram().memfd()).unwrap();
    u64::try_from(stat.st_blocks).unwrap() * 512
}

/// Has the guest's balloon hold `pages`, and waits until it does.
fn balloon(running: &Running, pages: u64) {
    running.machine.set_balloon(pages).unwrap();
    let started = Instant::now();
    // Each question is answered by the guest, so this waits on it and not on the time.
    while running.ballooned() != pages {
        assert!(started.elapsed() < PATIENCE, "{:?}", running.machine.balloon());
    }
}

#[test]
fn ballooned_memory_is_given_back_and_good_afterwards() {
    let Some(native) = Native::new() else { return };
    let pages = RAM_MIB * 256;
    let running = native.boot("vsock=resp:6379", &format!("balloon = true\n{VSOCK}"));
    // Every page is touched before.
    assert_eq!(running.ask(&format!("DIRTY contiguous {}", pages * 4 / 5), 1), "+OK\r\n");
    let started = Instant::now();
    while running.ask("DIRTYSTAT", 7).contains("rounds\r\n:0") {
        assert!(started.elapsed() < PATIENCE);
    }
    assert!(resident(&running) > pages * 4096 / 4 * 3);
    // The region goes with the next one.
    assert_eq!(running.ask("DIRTY contiguous 16", 1), "+OK\r\n");
    for _ in 0..3 {
        balloon(&running, pages / 2);
        let inflated = resident(&running);
        assert!(inflated <= pages * 4096 / 2, "{inflated} bytes are still there");
        balloon(&running, 0);
        assert_eq!(running.ask(&format!("DIRTY contiguous {}", pages / 4 * 3), 1), "+OK\r\n");
        assert_eq!(running.ask("DIRTY STOP", 1), "+OK\r\n");
        assert_eq!(running.ask("DIRTY CHECK", 1), "+OK\r\n");
        assert_eq!(running.ask("DIRTY contiguous 16", 1), "+OK\r\n");
    }
}

#[test]
fn a_machine_with_every_device_is_as_good_after_a_reset() {
    let Some(native) = Native::new() else { return };
    std::fs::File::create(native.path("disk")).unwrap().set_len(16 << 20).unwrap();
    let disk = "[[disk]]\npath = \"disk\"\nformat = \"raw\"\nqueues = 2\n";
    let cmdline = "blk=verify:16777216 hvc=echo rng=check vsock=echo:7 vsock=resp:6379";
    let running = native.boot(cmdline, &format!("rng = true\nballoon = true\n{disk}{VSOCK}{CONSOLE}"));
    let mut from = 0;
    for round in 0..3 {
        running.console.wait_text(from, "rng: ok");
        running.console.wait_text(from, "native-guest: ready");
        from = running.console.wait_text(from, "blk: verify ok bytes=16777216");
        talk(&running);
        type_lines(&native, "console: hello\n");
        balloon(&running, 2048 + round);
        assert_eq!(running.ask("BLK WRITE 3 65", 1), "+OK\r\n");
        assert!(running.ask("BLK READ 3", 2).ends_with(&format!("{}\r\n", "A".repeat(512))));
        // The guest may be gone before it has answered.
        let mut stream = running.connect(6379);
        stream.get_mut().write_all(b"RESET\r\n").unwrap();
        running.carry_out_reset();
    }
}

#[test]
fn a_guest_goes_on_while_its_memory_comes_from_a_snapshot() {
    let Some(native) = Native::new() else { return };
    let userfault = match Userfault::open() {
        Ok(userfault) => userfault,
        Err(error) => return println!("SKIPPED: {error}"),
    };
    let cmdline = "heartbeat=10 dirty=scattered:8192 vsock=resp:6379";
    let first = native.boot(cmdline, VSOCK);
    first.console.wait_text(0, "tick 20 ");
    let file = native.path("snapshot");
    save(&first, &file);
    let ticks = first.console.text().matches("tick ").count();
    drop(first);

    let second = native.build(cmdline, VSOCK);
    let snapshot = Snapshot::open(&file).unwrap();
    second.machine.restore_state(snapshot.state(), Default::default()).unwrap();
    let options = LazyOptions {
        fault_threads: 1,
        on_thread: || (),
        on_error: Box::new(|error| eprintln!("{error}")),
        on_done: Box::new(|| ()),
    };
    let lazy = LazyMemory::start(Arc::new(snapshot), vec![region(&second)], userfault, options).unwrap();
    second.machine.resume().unwrap();
    second.console.wait_text(0, &format!("tick {} ", ticks + 1));
    lazy.prefetch(None).unwrap();
    assert!(lazy.wait(PATIENCE), "{lazy:?}");
    assert!(lazy.progress().faults > 10 && !lazy.progress().failed, "{lazy:?}");
    second.console.wait_text(0, &format!("tick {} ", ticks + 20));
    assert_eq!(second.ask("DIRTY STOP", 1), "+OK\r\n");
    assert_eq!(second.ask("DIRTY CHECK", 1), "+OK\r\n");
}

fn save(running: &Running, file: &std::path::Path) {
    running.machine.pause().unwrap();
    let mut state = Vec::new();
    running.machine.save_state(&mut state).unwrap();
    let ram = running.machine.ram();
    let mut writer = SnapshotWriter::create(file).unwrap();
    writer.metadata(b"").unwrap();
    writer.state(&state).unwrap();
    writer.pages(&FileMemory::new(ram.memfd(), ram.page_count()), &mut |_, _| ()).unwrap();
    writer.commit().unwrap();
}

fn region(running: &Running) -> Region {
    let ram = running.machine.ram();
    let host = ram.page_ptr(PageIndex(0)).unwrap().expose_provenance();
    let owner = Arc::clone(ram) as Arc<dyn Any + Send + Sync>;
    // SAFETY: RAM below the hole for devices is one shared mapping of a memfd, which `ram` keeps; nobody has references
    // to guest memory.
    unsafe { Region::new(0, ram.page_count(), host, owner) }
}
