//! The socket device between a driver of our own and programs of the host: real KVM objects and sockets, no guest.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Machine, MachinePorts, RestoreOptions};
use crate::devices::net::Transmit;
use crate::devices::serial::StreamPort;
use crate::devices::vsock::{Deed, EVENT, RX, TX, VsockLink, VsockPort};
use crate::limits::{VSOCK_BUFFER_BYTES, VSOCK_CONNECTIONS_MAX, VSOCK_RESETS_MAX, VSOCK_WAITING_BYTES_MAX};
use crate::spec::{DeviceSpecs, VsockSpec};
use crate::virtio::rig::{self, BUFFERS, CONFIG, NEEDS_RESET, Rig, used};

const CID: u64 = 7;
const HEADER: usize = 44;
const STREAM: u16 = 1;
const PATIENCE: Duration = Duration::from_secs(20);
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;
/// Receive buffers, of 4 KiB each, and where a packet to be sent is put.
const RX_BUFFERS: u16 = 64;
const RX_BYTES: u32 = 4096;
const TX_AT: u64 = BUFFERS + 0x10_0000;

/// A gate that a test opens.
#[derive(Default)]
struct Sluice {
    held: Mutex<VecDeque<Deed>>,
    open: AtomicBool,
    full: AtomicBool,
}

impl VsockPort for Sluice {
    fn offer(&self, deed: Deed) -> Transmit {
        if self.full.load(Ordering::SeqCst) {
            return Transmit::Full;
        }
        match self.open.load(Ordering::SeqCst) {
            true => deed.carry_out(),
            false => self.held.lock().unwrap().push_back(deed),
        }
        Transmit::Taken
    }
}

impl Sluice {
    fn release(&self, count: usize) {
        let deeds: Vec<Deed> = self.held.lock().unwrap().drain(..count).collect();
        deeds.into_iter().for_each(Deed::carry_out);
    }

    fn waiting(&self) -> usize {
        self.held.lock().unwrap().len()
    }
}

/// A packet as the driver sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Packet {
    src: (u64, u32),
    dst: (u64, u32),
    length: u32,
    kind: u16,
    op: u16,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
    data: Vec<u8>,
}

impl Packet {
    fn new(guest: u32, host: u32, op: u16) -> Packet {
        let (src, dst) = ((CID, guest), (2, host));
        Packet {
            src,
            dst,
            length: 0,
            kind: STREAM,
            op,
            flags: 0,
            buf_alloc: 1 << 18,
            fwd_cnt: 0,
            data: Vec::new(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.src.0.to_le_bytes());
        bytes.extend(self.dst.0.to_le_bytes());
        for field in [self.src.1, self.dst.1, self.length] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend([self.kind, self.op].into_iter().flat_map(u16::to_le_bytes));
        bytes.extend([self.flags, self.buf_alloc, self.fwd_cnt].into_iter().flat_map(u32::to_le_bytes));
        bytes.extend(&self.data);
        bytes
    }

    fn parse(bytes: &[u8]) -> Packet {
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        Packet {
            src: (u64_at(0), u32_at(16)),
            dst: (u64_at(8), u32_at(20)),
            length: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
            data: bytes[HEADER..].to_vec(),
        }
    }
}

/// A machine with the device, the driver of it, and a folder for sockets.
struct Driver {
    rig: Rig,
    sluice: Arc<Sluice>,
    folder: tempfile::TempDir,
    /// Packets read from the receive queue.
    seen: u16,
}

impl Driver {
    /// `None`, with a word about it, where there is no KVM.
    fn new() -> Option<Driver> {
        if let Err(error) = crate::kvm::open() {
            println!("SKIPPED: {error}");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let vsock = VsockSpec { cid: u32::try_from(CID).unwrap(), socket: folder.path().join("v.sock") };
        let devices = DeviceSpecs { vsock: Some(vsock.clone()), ..DeviceSpecs::default() };
        let spec = rig::spec(devices);
        let sluice = Arc::new(Sluice { open: AtomicBool::new(true), ..Sluice::default() });
        let link = VsockLink::bind(&vsock, Arc::clone(&sluice) as Arc<dyn VsockPort>).unwrap();
        let serial = Arc::new(StreamPort::new(std::io::sink()));
        let ports =
            MachinePorts { net: Vec::new(), serial, vsock: Some(link), consoles: Vec::new(), disks: None };
        let machine = Machine::build(&spec, ports).unwrap();
        let mut driver = Driver { rig: Rig::new(machine, 0, 0), sluice, folder, seen: 0 };
        driver.fill();
        Some(driver)
    }

    /// Offers all receive buffers.
    fn fill(&mut self) {
        self.seen = 0;
        (0..RX_BUFFERS).for_each(|head| self.offer_buffer(head));
    }

    fn offer_buffer(&mut self, head: u16) {
        let at = BUFFERS + u64::from(RX_BYTES) * u64::from(head);
        self.rig.chain(RX, head, &[(at, RX_BYTES, true)]);
    }

    fn send(&mut self, packet: &Packet) {
        self.send_raw(&packet.bytes());
    }

    fn send_raw(&mut self, bytes: &[u8]) {
        self.rig.put(TX_AT, bytes);
        self.rig.chain(TX, 0, &[(TX_AT, u32::try_from(bytes.len()).unwrap(), false)]);
    }

    fn say(&mut self, guest: u32, host: u32, op: u16) {
        self.send(&Packet::new(guest, host, op));
    }

    fn write(&mut self, guest: u32, host: u32, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        self.send(&Packet { length, data: data.to_vec(), ..Packet::new(guest, host, RW) });
    }

    /// The next packet from the device, if there is one already; its buffer is offered again.
    fn try_receive(&mut self) -> Option<Packet> {
        self.rig.device.serve(RX);
        if self.rig.used(RX) == self.seen {
            return None;
        }
        let entry = used(RX) + 4 + 8 * u64::from(self.seen % 256);
        let head = u16::from_le_bytes(self.rig.get(entry, 2).try_into().unwrap());
        let length = usize::try_from(self.rig.written(RX, self.seen)).unwrap();
        let packet = Packet::parse(&self.rig.get(BUFFERS + u64::from(RX_BYTES) * u64::from(head), length));
        assert_eq!(usize::try_from(packet.length).unwrap(), packet.data.len());
        assert_eq!((packet.src.0, packet.dst.0), (2, CID));
        self.seen = self.seen.wrapping_add(1);
        self.offer_buffer(head);
        Some(packet)
    }

    fn receive(&mut self) -> Packet {
        let begun = Instant::now();
        loop {
            if let Some(packet) = self.try_receive() {
                return packet;
            }
            assert!(begun.elapsed() < PATIENCE, "the device says nothing");
            std::thread::yield_now();
        }
    }

    /// The next packet is `op` of the connection.
    fn expect(&mut self, guest: u32, host: u32, op: u16) -> Packet {
        let packet = self.receive();
        assert_eq!((packet.dst.1, packet.src.1, packet.op), (guest, host, op), "{packet:?}");
        packet
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.folder.path().join(format!("v.sock_{port}"))).unwrap()
    }

    /// A connection from the guest's port to the host's.
    fn connect(&mut self, listener: &UnixListener, guest: u32, host: u32) -> UnixStream {
        self.say(guest, host, REQUEST);
        let program = listener.accept().unwrap().0;
        program.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(self.expect(guest, host, RESPONSE).buf_alloc, VSOCK_BUFFER_BYTES);
        program
    }

    /// A program that asks for a port of the guest's.
    fn ask(&self, port: u32) -> UnixStream {
        let mut program = UnixStream::connect(self.folder.path().join("v.sock")).unwrap();
        program.set_read_timeout(Some(PATIENCE)).unwrap();
        program.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        program
    }

    /// A connection from a program to the guest's port; the port of the program.
    fn accept(&mut self, port: u32) -> (UnixStream, u32) {
        let mut program = self.ask(port);
        let request = self.receive();
        assert_eq!((request.op, request.dst.1), (REQUEST, port));
        self.say(port, request.src.1, RESPONSE);
        let line = format!("OK {}\n", request.src.1);
        assert_eq!(read(&mut program, line.len()), line.as_bytes());
        (program, request.src.1)
    }

    /// The program's stream ends, with the device being served meanwhile.
    fn assert_ends(&mut self, program: &mut UnixStream) {
        program.set_nonblocking(true).unwrap();
        let begun = Instant::now();
        loop {
            self.rig.device.serve(RX);
            match program.read(&mut [0; 64]) {
                Ok(0) => return,
                Err(error) if error.kind() != ErrorKind::WouldBlock => return,
                other => assert!(begun.elapsed() < PATIENCE, "{other:?}"),
            }
        }
    }

    fn metrics(&self) -> crate::devices::vsock::VsockMetrics {
        self.rig.machine.metrics().vsock.unwrap()
    }
}

fn read(program: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    program.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_guest_finds_its_context_id() {
    let Some(driver) = Driver::new() else { return };
    assert_eq!(driver.rig.read::<8>(CONFIG), CID.to_le_bytes());
}

#[test]
fn the_guest_reaches_a_program_and_both_talk() {
    let Some(mut driver) = Driver::new() else { return };
    let listener = driver.listen(52);
    let mut program = driver.connect(&listener, 1000, 52);
    driver.write(1000, 52, b"from the guest");
    assert_eq!(read(&mut program, 14), b"from the guest");
    program.write_all(b"to the guest").unwrap();
    let packet = driver.expect(1000, 52, RW);
    assert_eq!((&packet.data[..], packet.fwd_cnt), (&b"to the guest"[..], 14));
}

#[test]
fn a_program_reaches_the_guest_and_what_it_sends_at_once_is_kept() {
    let Some(mut driver) = Driver::new() else { return };
    let mut program = driver.ask(80);
    program.write_all(b"early").unwrap();
    let request = driver.receive();
    assert_eq!((request.op, request.dst.1, request.kind), (REQUEST, 80, STREAM));
    assert!(driver.try_receive().is_none(), "nothing before the guest has accepted");
    let port = request.src.1;
    driver.say(80, port, RESPONSE);
    assert_eq!(driver.expect(80, port, RW).data, b"early");
    let line = format!("OK {port}\n");
    assert_eq!(read(&mut program, line.len()), line.as_bytes());
    driver.write(80, port, b"late");
    assert_eq!(read(&mut program, 4), b"late");
    assert_eq!(driver.metrics().tx_bytes, 4, "the answer line is not the guest's");
}

#[test]
fn nobody_there_and_nobody_home_are_refused() {
    let Some(mut driver) = Driver::new() else { return };
    driver.say(1000, 53, REQUEST);
    driver.expect(1000, 53, RST);
    let mut program = driver.ask(80);
    let port = driver.receive().src.1;
    driver.say(80, port, RST);
    driver.assert_ends(&mut program);
    assert!(driver.try_receive().is_none(), "no answer to a refusal");
    for line in
        ["HELLO 80\n", "CONNECT x\n", "CONNECT 5 but this line has no end that anybody would wait for"]
    {
        let mut program = UnixStream::connect(driver.folder.path().join("v.sock")).unwrap();
        program.write_all(line.as_bytes()).unwrap();
        driver.assert_ends(&mut program);
    }
    assert_eq!(driver.metrics().connections, 0);
}

#[test]
fn the_guest_is_never_sent_more_than_it_has_room_for() {
    let Some(mut driver) = Driver::new() else { return };
    let listener = driver.listen(52);
    driver.send(&Packet { buf_alloc: 100, ..Packet::new(1, 52, REQUEST) });
    let mut program = listener.accept().unwrap().0;
    driver.expect(1, 52, RESPONSE);
    program.write_all(&[9; 250]).unwrap();
    assert_eq!(driver.expect(1, 52, RW).data, [9; 100]);
    driver.expect(1, 52, CREDIT_REQUEST);
    assert!(driver.try_receive().is_none(), "asked once");
    driver.send(&Packet { buf_alloc: 100, fwd_cnt: 30, ..Packet::new(1, 52, CREDIT_UPDATE) });
    assert_eq!(driver.expect(1, 52, RW).data, [9; 30]);
    driver.expect(1, 52, CREDIT_REQUEST);
    driver.send(&Packet { buf_alloc: 100, fwd_cnt: 5000, ..Packet::new(1, 52, CREDIT_UPDATE) });
    assert!(
        driver.try_receive().is_none_or(|p| p.op == CREDIT_REQUEST),
        "a claim that cannot be gives nothing"
    );
    driver.send(&Packet { buf_alloc: 1 << 18, fwd_cnt: 130, ..Packet::new(1, 52, CREDIT_UPDATE) });
    assert_eq!(driver.expect(1, 52, RW).data, [9; 120]);
}

#[test]
fn the_guest_may_send_what_it_was_told_and_not_a_byte_more() {
    let Some(mut driver) = Driver::new() else { return };
    let listener = driver.listen(52);
    let mut program = driver.connect(&listener, 1, 52);
    let (mut sent, mut known, mut got) = (0u32, 0u32, 0usize);
    program.set_nonblocking(true).unwrap();
    let mut room = vec![0; 1 << 20];
    // Four buffers' worth pass while the program reads and the driver keeps to what it was told.
    while got < 4 * VSOCK_BUFFER_BYTES as usize {
        let free = VSOCK_BUFFER_BYTES - (sent - known);
        if free > 0 {
            let length = free.min(60_000);
            driver.write(1, 52, &vec![5; length as usize]);
            sent += length;
        }
        got += program.read(&mut room).unwrap_or(0);
        while let Some(packet) = driver.try_receive() {
            assert_eq!(packet.op, CREDIT_UPDATE);
            known = packet.fwd_cnt;
        }
    }
    // The program stops reading; the kernel's buffer and ours fill up.
    let before = loop {
        let free = VSOCK_BUFFER_BYTES - (sent - known);
        if free == 0 {
            break sent;
        }
        driver.write(1, 52, &vec![5; free.min(60_000) as usize]);
        sent += free.min(60_000);
        while let Some(packet) = driver.try_receive() {
            known = packet.fwd_cnt;
        }
    };
    driver.say(1, 52, CREDIT_REQUEST);
    assert_eq!(driver.expect(1, 52, CREDIT_UPDATE).fwd_cnt, known);
    assert_eq!(before - known, VSOCK_BUFFER_BYTES);
    driver.write(1, 52, &[5]);
    driver.expect(1, 52, RST);
    assert_eq!(driver.metrics().connections, 0);
}

#[test]
fn each_direction_ends_by_itself() {
    let Some(mut driver) = Driver::new() else { return };
    let listener = driver.listen(52);
    let mut program = driver.connect(&listener, 1, 52);
    program.write_all(b"last words").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(driver.expect(1, 52, RW).data, b"last words");
    assert_eq!(driver.expect(1, 52, SHUTDOWN).flags, 2, "will not send");
    driver.write(1, 52, b"still heard");
    assert_eq!(read(&mut program, 11), b"still heard");
    driver.send(&Packet { flags: 2, ..Packet::new(1, 52, SHUTDOWN) });
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(driver.expect(1, 52, SHUTDOWN).flags, 3, "both directions are over");
    driver.send(&Packet { flags: 3, ..Packet::new(1, 52, SHUTDOWN) });
    driver.expect(1, 52, RST);

    let mut program = driver.connect(&listener, 2, 52);
    driver.send(&Packet { flags: 2, ..Packet::new(2, 52, SHUTDOWN) });
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
    program.write_all(b"answer").unwrap();
    assert_eq!(driver.expect(2, 52, RW).data, b"answer");
    driver.write(2, 52, b"not any more");
    driver.expect(2, 52, RST);
}

#[test]
fn a_guest_that_is_done_is_answered_when_all_was_passed_on() {
    let Some(mut driver) = Driver::new() else { return };
    let listener = driver.listen(52);
    let mut program = driver.connect(&listener, 1, 52);
    let mut sent = 0usize;
    // More than the kernel takes, so that some waits here.
    for _ in 0..4 {
        driver.write(1, 52, &[3; 60_000]);
        sent += 60_000;
    }
    driver.send(&Packet { flags: 3, ..Packet::new(1, 52, SHUTDOWN) });
    let mut got = 0;
    let mut room = vec![0; 1 << 16];
    program.set_nonblocking(true).unwrap();
    let reset = loop {
        got += program.read(&mut room).unwrap_or(0);
        if let Some(packet) = driver.try_receive().filter(|p| p.op != CREDIT_UPDATE) {
            break packet;
        }
    };
    assert_eq!(reset.op, RST);
    program.set_nonblocking(false).unwrap();
    while let Ok(more @ 1..) = program.read(&mut room) {
        got += more;
    }
    assert_eq!(got, sent);
}

#[test]
fn a_program_that_goes_away_ends_both_directions() {
    let Some(mut driver) = Driver::new() else { return };
    let (mut program, port) = driver.accept(80);
    program.write_all(b"bye").unwrap();
    drop(program);
    assert_eq!(driver.expect(80, port, RW).data, b"bye");
    // That it will say nothing more may be seen before that it is gone altogether.
    let first = driver.expect(80, port, SHUTDOWN).flags;
    assert!([2, 3].contains(&first));
    driver.say(80, port, RST);
    // The rest of it may have been on its way then.
    while let Some(late) = driver.try_receive() {
        assert_eq!((first, late.op, late.flags), (2, SHUTDOWN, 3));
    }
    let (program, port) = driver.accept(80);
    drop(program);
    driver.write(80, port, b"to nobody");
    let mut ops = vec![driver.receive().op];
    if ops[0] == SHUTDOWN {
        ops.push(driver.receive().op);
    }
    assert_eq!(ops.last(), Some(&RST));
}

#[test]
fn packets_that_belong_to_nothing_are_refused_once() {
    let Some(mut driver) = Driver::new() else { return };
    for op in [0, RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 8, 0xffff] {
        driver.say(9, 9, op);
        driver.expect(9, 9, RST);
    }
    driver.say(9, 9, RST);
    for kind in [0, 2, 3, 0xffff] {
        driver.send(&Packet { kind, ..Packet::new(9, 9, REQUEST) });
        assert_eq!(driver.expect(9, 9, RST).kind, kind);
        driver.send(&Packet { kind, ..Packet::new(9, 9, RST) });
    }
    assert!(driver.try_receive().is_none());
}

#[test]
fn packets_with_foreign_addresses_or_cut_short_are_dropped() {
    let Some(mut driver) = Driver::new() else { return };
    let good = Packet::new(9, 9, RW);
    for src in [0, 2, CID + 1, CID | 1 << 32, u64::MAX] {
        driver.send(&Packet { src: (src, 9), ..good.clone() });
    }
    for dst in [0, 1, CID, 2 | 1 << 32, u64::MAX] {
        driver.send(&Packet { dst: (dst, 9), ..good.clone() });
    }
    for length in [1, 8, HEADER - 1] {
        driver.send_raw(&good.bytes()[..length]);
    }
    assert!(driver.try_receive().is_none());
    assert_eq!((driver.metrics().tx_dropped, driver.rig.status() & NEEDS_RESET), (13, 0));
}

#[test]
fn a_packet_that_lies_about_its_length_ends_its_connection() {
    let Some(mut driver) = Driver::new() else { return };
    let listener = driver.listen(52);
    for length in [5, 1000, VSOCK_BUFFER_BYTES + 1, u32::MAX] {
        let mut program = driver.connect(&listener, 1, 52);
        driver.send(&Packet { length, data: vec![1; 4], ..Packet::new(1, 52, RW) });
        driver.expect(1, 52, RST);
        driver.assert_ends(&mut program);
    }
    let mut program = driver.connect(&listener, 1, 52);
    driver.send(&Packet { length: 2, data: vec![1; 4], ..Packet::new(1, 52, RW) });
    assert_eq!(read(&mut program, 2), [1; 2], "what lies behind the payload is none");
    for op in [REQUEST, RESPONSE, 0, 99] {
        driver.say(1, 52, op);
        driver.expect(1, 52, RST);
        driver.assert_ends(&mut program);
        program = driver.connect(&listener, 1, 52);
    }
}

#[test]
fn malformed_chains_stop_the_device_until_it_is_reset() {
    let Some(mut driver) = Driver::new() else { return };
    let listener = driver.listen(52);
    let past_ram = 16 << 20;
    for (queue, chain) in [
        (TX, vec![(BUFFERS, 44, false), (BUFFERS, 10, true)]),
        (TX, vec![(past_ram - 20, 44, false)]),
        (RX, vec![(BUFFERS, 43, true)]),
        (RX, vec![(BUFFERS, 44, false)]),
        (RX, vec![(past_ram, 4096, true)]),
    ] {
        driver.rig.start();
        driver.rig.chain(queue, 0, &chain);
        // Receive buffers are looked at when there is something to put into them.
        driver.say(9, 9, RW);
        driver.rig.device.serve(RX);
        assert_eq!(driver.rig.status() & NEEDS_RESET, NEEDS_RESET, "{queue} {chain:?}");
        driver.rig.start();
        driver.fill();
        drop(driver.connect(&listener, 1, 52));
    }
    assert_eq!(driver.metrics().breakdowns, 5);
}

#[test]
fn a_flood_of_requests_meets_bounds() {
    let Some(mut driver) = Driver::new() else { return };
    driver.sluice.open.store(false, Ordering::SeqCst);
    let most = u32::try_from(VSOCK_CONNECTIONS_MAX).unwrap();
    for port in 0..most {
        driver.say(port, 52, REQUEST);
    }
    driver.say(most, 52, REQUEST);
    driver.expect(most, 52, RST);
    assert_eq!(driver.metrics().connections, u64::from(most));
    // A driver that never takes the refusals is not heard any more.
    driver.rig.start();
    for _ in 0..VSOCK_RESETS_MAX + 50 {
        driver.say(9, 9, RW);
    }
    assert_eq!(usize::from(driver.rig.used(TX)), VSOCK_RESETS_MAX);
    driver.fill();
    for _ in 0..VSOCK_RESETS_MAX + 50 {
        driver.expect(9, 9, RST);
    }
    assert_eq!(usize::from(driver.rig.used(TX)), VSOCK_RESETS_MAX + 50);
    assert_eq!(driver.metrics().connections, 0, "gone with the driver's reset");
}

#[test]
fn nothing_the_guest_does_is_noticed_before_it_is_released_and_then_in_order() {
    let Some(mut driver) = Driver::new() else { return };
    let listener = driver.listen(52);
    listener.set_nonblocking(true).unwrap();
    driver.sluice.open.store(false, Ordering::SeqCst);
    driver.say(1, 52, REQUEST);
    assert!(driver.try_receive().is_none());
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    driver.sluice.release(1);
    driver.expect(1, 52, RESPONSE);
    let mut program = listener.accept().unwrap().0;
    program.set_nonblocking(true).unwrap();
    driver.write(1, 52, b"one");
    driver.write(1, 52, b"two");
    driver.send(&Packet { flags: 3, ..Packet::new(1, 52, SHUTDOWN) });
    assert!(driver.try_receive().is_none());
    assert_eq!(program.read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(driver.sluice.waiting(), 3);
    program.write_all(b"input is not held").unwrap();
    driver.sluice.release(1);
    assert!(driver.try_receive().is_none());
    let mut room = [0; 9];
    assert_eq!(program.read(&mut room).unwrap(), 3);
    driver.sluice.release(2);
    driver.expect(1, 52, RST);
    assert_eq!((program.read(&mut room).unwrap(), &room[..3]), (3, &b"two"[..]));
    driver.assert_ends(&mut program);

    let mut program = driver.ask(80);
    let port = driver.receive().src.1;
    driver.say(80, port, RESPONSE);
    driver.rig.device.serve(RX);
    program.set_nonblocking(true).unwrap();
    assert_eq!(program.read(&mut room).unwrap_err().kind(), ErrorKind::WouldBlock, "an answer is output too");
    driver.sluice.release(1);
    driver.rig.device.serve(RX);
    assert_eq!(program.read(&mut room).unwrap(), 9);
    assert_eq!(&room[..3], b"OK ");
}

#[test]
fn a_full_gate_stops_the_guest_and_loses_nothing() {
    let Some(mut driver) = Driver::new() else { return };
    let listener = driver.listen(52);
    let mut program = driver.connect(&listener, 1, 52);
    driver.sluice.full.store(true, Ordering::SeqCst);
    let before = driver.rig.used(TX);
    driver.write(1, 52, b"one ");
    driver
        .rig
        .put(TX_AT + 0x1000, &Packet { length: 3, data: b"two".to_vec(), ..Packet::new(1, 52, RW) }.bytes());
    driver.rig.chain(TX, 1, &[(TX_AT + 0x1000, 47, false)]);
    assert_eq!(driver.rig.used(TX), before + 1, "the second stays in its queue");
    driver.sluice.full.store(false, Ordering::SeqCst);
    driver.rig.device.serve(TX);
    assert_eq!(read(&mut program, 7), b"one two");
    driver.sluice.open.store(false, Ordering::SeqCst);
    let taken = driver.rig.used(TX);
    let most = u16::try_from(VSOCK_WAITING_BYTES_MAX / 64).unwrap_or(u16::MAX);
    for _ in 0..most {
        driver.say(9, 52, REQUEST);
        driver.say(9, 52, RST);
        if driver.sluice.waiting() * 64 >= VSOCK_WAITING_BYTES_MAX {
            break;
        }
    }
    driver.say(9, 52, REQUEST);
    let stopped = driver.rig.used(TX);
    driver.say(9, 52, REQUEST);
    assert_eq!(driver.rig.used(TX), stopped, "not more than its share of the gate");
    assert_ne!(stopped, taken);
}

#[test]
fn while_paused_nothing_moves() {
    let Some(mut driver) = Driver::new() else { return };
    let (mut program, port) = driver.accept(80);
    driver.rig.device.pause();
    program.write_all(b"input").unwrap();
    driver.write(80, port, b"output");
    assert!(driver.try_receive().is_none());
    program.set_nonblocking(true).unwrap();
    assert_eq!(program.read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
    driver.rig.device.resume();
    driver.rig.device.serve(TX);
    assert_eq!(driver.expect(80, port, RW).data, b"input");
    program.set_nonblocking(false).unwrap();
    assert_eq!(read(&mut program, 6), b"output");
}

#[test]
fn after_a_restore_the_driver_is_told_and_old_connections_are_refused() {
    let Some(mut driver) = Driver::new() else { return };
    let (mut program, port) = driver.accept(80);
    driver.rig.device.pause();
    let mut state = Vec::new();
    driver.rig.machine.save_state(&mut state).unwrap();
    let mut replica = Driver::new().unwrap();
    replica.rig.device.pause();
    let mut page = [0; 4096];
    for index in (0..driver.rig.ram().page_count()).map(mycelium_ram_core::PageIndex) {
        driver.rig.ram().read_page(index, &mut page).unwrap();
        replica.rig.ram().write_page(index, &page).unwrap();
    }
    replica.rig.take_over(&driver.rig);
    replica.seen = driver.seen;
    replica.rig.machine.restore_state(&state, RestoreOptions::default()).unwrap();
    replica.rig.device.make_up();
    replica.rig.device.resume();
    replica.rig.device.serve(EVENT);
    assert_eq!(replica.rig.used(EVENT), 0, "owed until there is a buffer");
    replica.rig.put(BUFFERS + 0x8_0000, &[0xff; 8]);
    replica.rig.chain(EVENT, 0, &[(BUFFERS + 0x8_0000, 8, true)]);
    assert_eq!((replica.rig.used(EVENT), replica.rig.written(EVENT, 0)), (1, 4));
    assert_eq!(replica.rig.get(BUFFERS + 0x8_0000, 8), [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    replica.rig.chain(EVENT, 0, &[(BUFFERS + 0x8_0000, 8, true)]);
    assert_eq!(replica.rig.used(EVENT), 1, "told once");
    replica.write(80, port, b"to the old program");
    replica.expect(80, port, RST);
    // The same in the old process, when a state is put back into it.
    driver.rig.machine.restore_state(&state, RestoreOptions::default()).unwrap();
    driver.assert_ends(&mut program);
}

#[test]
fn programs_that_come_too_early_are_sent_away() {
    let Some(mut driver) = Driver::new() else { return };
    driver.rig.write(rig::STATUS, &[0]);
    let mut program = driver.ask(80);
    driver.assert_ends(&mut program);
}
