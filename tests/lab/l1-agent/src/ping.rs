//! Reachability between hosts by UDP echo.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use lab_agent::limits::PING_ATTEMPTS;
use lab_agent::plan::ECHO_PORT;
use lab_agent::protocol::{Answer, Refusal};

/// Echoes datagrams for as long as the host runs.
pub(crate) fn start_echo() -> Result<(), Refusal> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, ECHO_PORT));
    let socket = socket.map_err(|error| Refusal::new(format!("UDP port {ECHO_PORT}"), error))?;
    thread::spawn(move || {
        let mut datagram = [0_u8; 64];
        while let Ok((len, from)) = socket.recv_from(&mut datagram) {
            // A lost echo is what the pinging side is there to notice.
            let _ = socket.send_to(&datagram[..len], from);
        }
    });
    Ok(())
}

/// Sends numbered datagrams until one comes back.
pub(crate) fn ping(to: Ipv4Addr, timeout_ms: u64) -> Result<Answer, Refusal> {
    let refuse = |error: io::Error| Refusal::new(to.to_string(), error);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(refuse)?;
    let each = Duration::from_millis(timeout_ms) / PING_ATTEMPTS;
    socket.set_read_timeout(Some(each.max(Duration::from_millis(1)))).map_err(refuse)?;
    for attempt in 1..=PING_ATTEMPTS {
        let begun = Instant::now();
        // An unreachable network is a failed attempt, not the end: links may be coming up.
        let sent = socket.send_to(&attempt.to_le_bytes(), (to, ECHO_PORT)).is_ok();
        if sent && echoed(&socket, to, attempt) {
            let rtt_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            return Ok(Answer::Pong { rtt_us, sent: attempt });
        }
        thread::sleep(each.saturating_sub(begun.elapsed()));
    }
    Err(Refusal::new(to.to_string(), format!("no echo within {timeout_ms} ms")))
}

fn echoed(socket: &UdpSocket, to: Ipv4Addr, attempt: u32) -> bool {
    let mut datagram = [0_u8; 64];
    while let Ok((len, from)) = socket.recv_from(&mut datagram) {
        if from == SocketAddr::from((to, ECHO_PORT)) && datagram[..len] == attempt.to_le_bytes() {
            return true;
        }
    }
    false
}
