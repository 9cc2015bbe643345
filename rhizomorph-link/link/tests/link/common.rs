//! Two ends of a link on loopback, and a path between them that a test can cut.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use rhizomorph_link::{
    AllowList, DialConfig, Identity, IncomingLink, LinkEvent, LinkListener, LinkOptions, LinkReceiver,
    LinkSender, ListenConfig, PathSpec, Payload, dial,
};
use tokio::net::UdpSocket;
use tokio::sync::Mutex;

pub(crate) const LOOPBACK: &str = "127.0.0.1:0";

/// A listener that lets `allowed` in, on `sockets` ports.
pub(crate) fn listen(identity: &Identity, allowed: &Identity, sockets: usize) -> LinkListener {
    listen_at(identity, allowed, vec![LOOPBACK.parse().unwrap(); sockets])
}

pub(crate) fn listen_at(identity: &Identity, allowed: &Identity, binds: Vec<SocketAddr>) -> LinkListener {
    let allow = AllowList::only([allowed.peer_key()]);
    let options = LinkOptions::default();
    LinkListener::bind(ListenConfig { identity: identity.clone(), allow, binds, options }).unwrap()
}

pub(crate) fn dial_config(identity: &Identity, peer: &Identity, remotes: &[SocketAddr]) -> DialConfig {
    DialConfig {
        identity: identity.clone(),
        peer: peer.peer_key(),
        paths: remotes.iter().map(|addr| PathSpec::from(*addr)).collect(),
        label: Bytes::from_static(b"vm-7"),
        options: LinkOptions::default(),
    }
}

/// Both ends of one link, each path through a gate.
pub(crate) struct Pair {
    pub(crate) here: Identity,
    pub(crate) there: Identity,
    pub(crate) listener: LinkListener,
    pub(crate) gates: Vec<Gate>,
    pub(crate) sender: LinkSender,
    pub(crate) receiver: LinkReceiver,
    pub(crate) incoming: IncomingLink,
}

pub(crate) async fn pair(paths: usize) -> Pair {
    let (here, there) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let listener = listen(&there, &here, paths);
    let mut gates = Vec::new();
    for addr in listener.local_addrs() {
        gates.push(Gate::open(*addr).await);
    }
    let remotes: Vec<SocketAddr> = gates.iter().map(|gate| gate.addr).collect();
    let (sender, receiver) = dial(dial_config(&here, &there, &remotes)).await.unwrap();
    let incoming = listener.accept().await.unwrap();
    Pair { here, there, listener, gates, sender, receiver, incoming }
}

/// A UDP forwarder standing for a path: passes a budget of packets, then drops all until reopened.
pub(crate) struct Gate {
    pub(crate) addr: SocketAddr,
    budget: Arc<AtomicI64>,
}

const OPEN: i64 = i64::MAX;

impl Gate {
    pub(crate) async fn open(server: SocketAddr) -> Self {
        let front = Arc::new(UdpSocket::bind(LOOPBACK).await.unwrap());
        let addr = front.local_addr().unwrap();
        let budget = Arc::new(AtomicI64::new(OPEN));
        tokio::spawn(forward(front, server, Arc::clone(&budget)));
        Self { addr, budget }
    }

    /// Drops everything from now on, in both directions.
    pub(crate) fn cut(&self) {
        self.cut_after(0);
    }

    /// Drops everything after `packets` more.
    pub(crate) fn cut_after(&self, packets: i64) {
        self.budget.store(packets, Ordering::SeqCst);
    }

    /// Passes everything again.
    pub(crate) fn reopen(&self) {
        self.budget.store(OPEN, Ordering::SeqCst);
    }
}

fn passes(budget: &AtomicI64) -> bool {
    let take = |left: i64| (left > 0).then(|| if left == OPEN { OPEN } else { left - 1 });
    budget.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
}

/// One back socket per client address, as a NAT has.
async fn forward(front: Arc<UdpSocket>, server: SocketAddr, budget: Arc<AtomicI64>) {
    let backs: Mutex<Vec<(SocketAddr, Arc<UdpSocket>)>> = Mutex::default();
    let mut buffer = vec![0; 65_536];
    while let Ok((len, client)) = front.recv_from(&mut buffer).await {
        if !passes(&budget) {
            continue;
        }
        let known =
            backs.lock().await.iter().find(|(addr, _)| *addr == client).map(|(_, back)| Arc::clone(back));
        let back = match known {
            Some(back) => back,
            None => {
                let back = Arc::new(UdpSocket::bind(LOOPBACK).await.unwrap());
                back.connect(server).await.unwrap();
                backs.lock().await.push((client, Arc::clone(&back)));
                tokio::spawn(answer(Arc::clone(&back), Arc::clone(&front), client, Arc::clone(&budget)));
                back
            }
        };
        let _ = back.send(&buffer[..len]).await;
    }
}

async fn answer(back: Arc<UdpSocket>, front: Arc<UdpSocket>, client: SocketAddr, budget: Arc<AtomicI64>) {
    let mut buffer = vec![0; 65_536];
    loop {
        let len = match back.recv(&mut buffer).await {
            Ok(len) => len,
            // A closed port behind; the client must find out by silence.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
            // The runtime is shutting down.
            Err(_) => return,
        };
        if passes(&budget) {
            let _ = front.send_to(&buffer[..len], client).await;
        }
    }
}

/// The next event `wanted` maps to something, dropping others.
pub(crate) async fn next<T>(
    receiver: &mut LinkReceiver,
    mut wanted: impl FnMut(LinkEvent) -> Option<T>,
) -> T {
    loop {
        let event = receiver.recv().await.expect("the link stays open");
        if let Some(found) = wanted(event) {
            return found;
        }
    }
}

pub(crate) fn bundle(event: LinkEvent) -> Option<(u64, Payload)> {
    match event {
        LinkEvent::Bundle { id, payload, .. } => Some((id.0, payload)),
        _ => None,
    }
}

/// Bytes that differ at every place and for every seed.
pub(crate) fn pattern(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(word).flatten().take(len).collect()
}
