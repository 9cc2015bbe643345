//! Telling switches where the guest's address is now: RARP frames, often at first, then seldom, and whenever the guest's own
//! address is seen to arrive from elsewhere.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use endophyte_vmm::devices::net::{Tap, packet_of};

/// Pauses between announcements after a takeover; the last one repeats a few times and then it is quiet.
const PAUSES_MS: [u64; 10] = [5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];
/// A flood of foreign frames causes no more announcements than this.
const PACE: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
struct State {
    active: bool,
    asked: bool,
}

/// Announces one VM's addresses.
#[derive(Debug)]
pub(crate) struct Announcer {
    cards: Vec<([u8; 6], Arc<Tap>)>,
    state: Mutex<State>,
    wake: Condvar,
}

impl Announcer {
    pub(crate) fn new(cards: Vec<([u8; 6], Arc<Tap>)>) -> Arc<Self> {
        Arc::new(Self { cards, state: Mutex::default(), wake: Condvar::new() })
    }

    /// Announces now, and goes on from a thread of its own.
    pub(crate) fn start(self: &Arc<Self>) -> std::io::Result<()> {
        self.lock().active = true;
        self.send();
        let me = self.clone();
        std::thread::Builder::new().name("announce".into()).spawn(move || me.run()).map(drop)
    }

    /// Somebody else spoke with our address.
    pub(crate) fn again(&self) {
        let mut state = self.lock();
        if state.active {
            state.asked = true;
            self.wake.notify_one();
        }
    }

    /// Never announce again: this process is not the active any more.
    pub(crate) fn stop(&self) {
        self.lock().active = false;
        self.wake.notify_one();
    }

    fn run(&self) {
        let mut pauses = PAUSES_MS.iter().map(|ms| Duration::from_millis(*ms));
        let mut last = Instant::now();
        loop {
            let pause = pauses.next().unwrap_or(Duration::from_secs(3600));
            let state = self.lock();
            let (mut state, _) = self
                .wake
                .wait_timeout_while(state, pause, |s| s.active && !s.asked)
                .unwrap_or_else(PoisonError::into_inner);
            if !state.active {
                return;
            }
            if std::mem::take(&mut state.asked) && last.elapsed() < PACE {
                continue;
            }
            drop(state);
            self.send();
            last = Instant::now();
        }
    }

    fn send(&self) {
        for (mac, tap) in &self.cards {
            let _ = tap.write(0, &packet_of(&rarp(*mac)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A RARP request of a station for its own address, as hypervisors send after migration (RFC 903), padded to the
/// shortest Ethernet frame.
fn rarp(mac: [u8; 6]) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&0x8035u16.to_be_bytes());
    // Ethernet, IPv4, lengths 6 and 4, operation 3 (request reverse).
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rarp_frame_comes_from_the_guest_and_goes_to_all() {
        let mac = [2, 0, 0, 0, 0, 7];
        let frame = rarp(mac);
        assert_eq!((&frame[..6], &frame[6..12]), (&[0xff; 6][..], &mac[..]));
        assert_eq!(frame[12..14], [0x80, 0x35]);
        assert_eq!((&frame[22..28], &frame[32..38]), (&mac[..], &mac[..]));
    }
}
