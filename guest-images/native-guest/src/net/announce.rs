//! A gratuitous ARP request: it tells switches and neighbours where this MAC address is now.

use core::net::Ipv4Addr;

const FRAME_BYTES: usize = 42;

/// The frame that announces `ip` at `mac`.
pub(super) fn gratuitous_arp(mac: [u8; 6], ip: Ipv4Addr) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    let fields: [&[u8]; 8] = [
        &[0xff; 6],
        &mac,
        &[0x08, 0x06],                               // ARP
        &[0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x01], // Ethernet, IPv4, their sizes, request
        &mac,
        &ip.octets(),
        &[0; 6],
        &ip.octets(),
    ];
    let mut at = 0;
    for field in fields {
        frame[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    }
    frame
}
