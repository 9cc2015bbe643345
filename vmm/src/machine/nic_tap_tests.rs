//! The network card on a tap of the kernel's, in a network namespace of its own: what the kernel does with large frames, and
//! with small ones for guests that cannot do the work. Needs root.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use super::nic_rig::{Driver, MERGE, Made, OFFLOADS, RX, SEVERAL, TX, wait_until};
use crate::devices::net::{HEADER_BYTES, Tap, TapError, TapPort, frame_of, rx};
use crate::spec::NetSpec;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Bytes of Ethernet, IPv4 and TCP headers without options.
const HEADERS: usize = 54;
/// Payload of one piece of a large segment.
const PIECE: u16 = 1400;
const PIECES: usize = 20;

/// Moves this thread, and what it starts, into a new namespace with a tap; `None`, with a word about it, without the right.
fn namespace_with_tap(options: &str) -> Option<()> {
    // SAFETY: leaving the network namespace invalidates no memory and no descriptor of this process.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        println!("SKIPPED: no right to make a network namespace: {}", io::Error::last_os_error());
        return None;
    }
    if !ip(&format!("tuntap add tap0 mode tap {options}")) {
        println!("SKIPPED: no tap can be made; are /dev/net/tun and ip there?");
        return None;
    }
    // Without an address of its own the kernel has nothing to say on it.
    assert!(ip("link set tap0 addrgenmode none") && ip("link set tap0 up"));
    Some(())
}

fn ip(line: &str) -> bool {
    Command::new("ip").args(line.split_whitespace()).status().is_ok_and(|status| status.success())
}

fn card(queues: u16) -> NetSpec {
    NetSpec { queues, ..NetSpec::plain("tap0", "02:00:00:00:00:01".parse().unwrap()) }
}

/// A packet socket on the tap that sees and says headers too.
struct Host(OwnedFd);

impl Host {
    fn new() -> Host {
        let all = i32::from(u16::try_from(libc::ETH_P_ALL).unwrap().to_be());
        // SAFETY: a new descriptor, owned at once.
        let socket = unsafe {
            let fd =
                libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, all);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        let host = Host(socket);
        host.option(libc::PACKET_VNET_HDR_SZ, i32::try_from(HEADER_BYTES).unwrap());
        host.bind();
        host
    }

    fn option(&self, name: libc::c_int, value: libc::c_int) {
        let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap();
        // SAFETY: the kernel reads one int, which lives through the call.
        let set = unsafe {
            libc::setsockopt(self.0.as_raw_fd(), libc::SOL_PACKET, name, (&raw const value).cast(), length)
        };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }

    fn bind(&self) {
        // SAFETY: an all-zero address of this kind is valid; the name is NUL-terminated; the kernel reads the address given,
        // which lives through the call.
        let bound = unsafe {
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
            address.sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
            address.sll_ifindex = i32::try_from(libc::if_nametoindex(c"tap0".as_ptr())).unwrap();
            let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
            libc::bind(self.0.as_raw_fd(), (&raw const address).cast(), length)
        };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
    }

    /// The next packet that is a guest's TCP; what the host itself says is passed over.
    fn receive(&self) -> Option<Vec<u8>> {
        let mut packet = vec![0; 70_000];
        // SAFETY: the kernel writes no more than the vector has.
        let read = unsafe { libc::recv(self.0.as_raw_fd(), packet.as_mut_ptr().cast(), packet.len(), 0) };
        packet.truncate(usize::try_from(read).ok()?);
        Some(packet)
    }

    fn send(&self, packet: &[u8]) {
        // SAFETY: the kernel reads the slice given.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0) };
        assert_eq!(usize::try_from(sent).ok(), Some(packet.len()), "{}", io::Error::last_os_error());
    }
}

/// A header that leaves the checksum of a large segment, and cutting it, to the other side.
fn header() -> [u8; HEADER_BYTES] {
    let mut header = [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    header[4..6].copy_from_slice(&PIECE.to_le_bytes());
    header
}

fn sum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// A TCP segment of `PIECES` pieces with the checksum of its pseudo-header where the whole one belongs.
fn segment(from: [u8; 6], to: [u8; 6]) -> Vec<u8> {
    let payload = PIECES * usize::from(PIECE);
    let mut frame = vec![0x5a; HEADERS + payload];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&[8, 0]);
    let length = u16::try_from(40 + payload).unwrap().to_be_bytes();
    let addresses = [10, 9, 0, 2, 10, 9, 0, 3];
    let fixed = [0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, 6, 0, 0];
    frame[14..26].copy_from_slice(&fixed);
    frame[26..34].copy_from_slice(&addresses);
    let checksum = !sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame[34..54].copy_from_slice(&[0, 80, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 2, 0, 0, 0, 0, 0]);
    let pseudo = [&addresses[..], &[0, 6], &u16::try_from(20 + payload).unwrap().to_be_bytes()].concat();
    frame[50..52].copy_from_slice(&sum(&pseudo).to_be_bytes());
    frame
}

/// Whether a frame's TCP checksum is right.
fn is_summed(frame: &[u8]) -> bool {
    let tcp = &frame[34..];
    let length = u16::try_from(tcp.len()).unwrap().to_be_bytes();
    sum(&[&frame[26..34], &[0, 6], &length, tcp].concat()) == 0xffff
}

/// A driver of a card on the namespace's tap, whose frames pass straight to it, with receive buffers of 2 KiB.
fn driver(queues: u16, features: u64) -> Option<Driver> {
    let spec = card(queues);
    let tap = Tap::open(&spec).unwrap();
    let mut driver = Driver::on(Made { spec, ..Made::with_headers(features) }, tap, Vec::new())?;
    driver.machine.set_rx_enabled(true);
    (0..64).for_each(|head| _ = driver.receive(head));
    Some(driver)
}

fn payload(packets: &[Vec<u8>]) -> usize {
    packets.iter().map(|packet| frame_of(packet).len() - HEADERS).sum()
}

#[test]
fn large_segments_pass_a_real_tap_both_ways() {
    let Some(()) = namespace_with_tap("") else { return };
    let Some(mut driver) = driver(1, OFFLOADS | MERGE) else { return };
    let host = Host::new();
    driver.send_packet(TX, 100, &header(), &segment(MAC, [0xff; 6]));
    let packet = driver.port.sent.lock().unwrap().pop().unwrap().1;
    let out = TapPort::new(std::sync::Arc::clone(&driver.tap));
    crate::devices::net::NetPort::transmit(&out, 0, &packet);
    let mut seen = None;
    wait_until("the guest's segment", || {
        seen = host.receive();
        seen.is_some()
    });
    let seen = seen.unwrap();
    assert_eq!(
        (frame_of(&seen), seen[1], &seen[4..6]),
        (frame_of(&packet), 1, &PIECE.to_le_bytes()[..]),
        "in one"
    );
    assert_eq!(driver.tap.lost(), 0);
    host.send(&[&header()[..], &segment([4; 6], MAC)].concat());
    wait_until("the host's segment", || !driver.delivered().is_empty());
    let delivered = driver.port.delivered.lock().unwrap().clone();
    assert_eq!(
        (delivered.len(), delivered[0][0], delivered[0][1]),
        (1, 1, 1),
        "in one, its checksum to be done"
    );
    assert_eq!(delivered[0][HEADER_BYTES..], segment([4; 6], MAC));
    assert_eq!(driver.used(RX), 14, "28,066 bytes in buffers of 2,048");
}

#[test]
fn a_guest_that_can_do_nothing_gets_small_frames_with_checksums() {
    let Some(()) = namespace_with_tap("") else { return };
    let Some(mut driver) = driver(1, OFFLOADS | MERGE) else { return };
    let host = Host::new();
    driver.write(crate::virtio::rig::STATUS, &[0]);
    driver.agree_to(0);
    (0..64).for_each(|head| _ = driver.receive(head));
    host.send(&[&header()[..], &segment([4; 6], MAC)].concat());
    wait_until("all pieces", || driver.used(RX) == 20);
    let delivered = driver.port.delivered.lock().unwrap().clone();
    assert_eq!(payload(&delivered), PIECES * usize::from(PIECE));
    for packet in &delivered {
        assert_eq!(packet[..HEADER_BYTES], [0; HEADER_BYTES]);
        assert!(is_summed(frame_of(packet)));
    }
}

#[test]
fn a_tap_without_offload_hands_over_bare_frames_whatever_it_did_before() {
    let Some(()) = namespace_with_tap("") else { return };
    drop(driver(1, OFFLOADS | MERGE));
    let spec = NetSpec { offload: false, ..card(1) };
    let tap = Tap::open(&spec).unwrap();
    assert!(!tap.offers_offloads());
    let host = Host::new();
    host.send(&[&header()[..], &segment([4; 6], MAC)].concat());
    let mut room = vec![9; 70_000];
    let bytes = tap.read(0, &mut room).unwrap();
    assert_eq!(bytes, HEADER_BYTES + HEADERS + usize::from(PIECE));
    assert!(room[..HEADER_BYTES] == [0; HEADER_BYTES] && is_summed(&room[HEADER_BYTES..bytes]));
}

#[test]
fn the_kernel_refuses_what_cannot_be_and_it_is_counted() {
    let Some(()) = namespace_with_tap("") else { return };
    let tap = Tap::open(&card(1)).unwrap();
    let mut packet = [&header()[..], &segment(MAC, [0xff; 6])].concat();
    packet[6..8].fill(0xff);
    tap.write(0, &packet).unwrap_err();
    assert_eq!(tap.lost(), 1);
}

#[test]
fn queues_of_a_tap_are_used_as_the_driver_says() {
    let Some(()) = namespace_with_tap("multi_queue") else { return };
    let Some(mut driver) = driver(3, OFFLOADS | MERGE | SEVERAL) else { return };
    let host = Host::new();
    for pair in 1..3 {
        (0..64).for_each(|head| _ = driver.receive_by(rx(pair), head));
    }
    let used = |driver: &Driver| [0, 1, 2].map(|pair| driver.used(rx(pair)));
    let flows = |host: &Host| {
        for port in 0..40 {
            let mut packet = [&header()[..], &segment([4; 6], MAC)[..HEADERS + 100]].concat();
            packet[..HEADER_BYTES].fill(0);
            packet[HEADER_BYTES + 16..HEADER_BYTES + 18].copy_from_slice(&[0, 140]);
            packet[HEADER_BYTES + 35] = port;
            host.send(&packet);
        }
    };
    flows(&host);
    wait_until("all by one queue", || used(&driver) == [40, 0, 0]);
    assert_eq!(driver.command(6, &[4, 0, 3, 0]), 0);
    flows(&host);
    wait_until("spread", || used(&driver).iter().sum::<u16>() == 80);
    let spread = used(&driver);
    assert!(spread[1] > 0 && spread[2] > 0, "{spread:?}");
    assert_eq!(driver.command(6, &[4, 0, 2, 0]), 0);
    assert_eq!(driver.command(6, &[4, 0, 3, 0]), 0, "a queue can be taken up again");
}

#[test]
fn taps_of_one_queue_and_of_several_are_told_apart() {
    let Some(()) = namespace_with_tap("") else { return };
    let refused = Tap::open(&card(2)).unwrap_err();
    assert!(matches!(refused, TapError::OneQueue { .. }), "{refused}");
    assert!(refused.to_string().contains("multi_queue"), "{refused}");
    let _held = Tap::open(&card(1)).unwrap();
    assert!(matches!(Tap::open(&card(1)), Err(TapError::Busy { .. })));
    assert!(ip("tuntap add tap1 mode tap multi_queue"));
    let one = Tap::open(&NetSpec { tap: "tap1".to_owned(), ..card(1) }).unwrap();
    assert_eq!(one.pairs(), 1, "one queue of several is as good as one");
    let again = Tap::open(&NetSpec { tap: "tap1".to_owned(), ..card(2) });
    assert!(matches!(again, Err(TapError::Busy { .. })), "{again:?}");
}

#[test]
fn an_inherited_tap_is_taken_as_it_was_opened() {
    let Some(()) = namespace_with_tap("") else { return };
    let original = Tap::open(&card(1)).unwrap();
    let inherited = |offload| {
        let tap = format!("fd:{}", original.sources().next().unwrap());
        Tap::open(&NetSpec { tap, offload, ..card(1) }).unwrap()
    };
    assert!(inherited(true).offers_offloads());
    assert!(!inherited(false).offers_offloads());
    let host = Host::new();
    let mut small = [&header()[..], &segment([4; 6], MAC)[..HEADERS + 100]].concat();
    small[..HEADER_BYTES].fill(0);
    host.send(&small);
    let mut room = [9; 2000];
    assert_eq!(inherited(false).read(0, &mut room).unwrap(), small.len(), "it has headers either way");
}
