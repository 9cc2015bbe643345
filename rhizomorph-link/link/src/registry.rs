//! Which link an accepted connection belongs to, and how many a peer may have.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use rhizomorph_proto::codec::Hello;
use rhizomorph_proto::ids::LinkId;

use crate::close::CloseCode;
use crate::limits::{CLOSED_REMEMBERED, LINKS_MAX, LINKS_PER_PEER, PENDING_PER_PEER};
use crate::link::Link;
use crate::options::LinkOptions;
use crate::peer_key::PeerKey;
use crate::runtime::Executor;

type Key = (PeerKey, LinkId);

/// The links of one listener. Peers are separate: a link id means nothing under another key.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    links: HashMap<Key, Arc<Link>>,
    /// Closed ones, oldest first.
    closed: VecDeque<Key>,
    /// Connections between handshake and hello, by peer.
    pending: HashMap<PeerKey, usize>,
}

/// A connection's link.
#[derive(Debug)]
pub(crate) enum Joined {
    /// Its first connection.
    New(Arc<Link>),
    /// A further one.
    Known(Arc<Link>),
}

impl Registry {
    /// Finds or makes the link a hello names.
    pub(crate) fn join(
        &self,
        peer: PeerKey,
        hello: &Hello,
        options: &LinkOptions,
        executor: &Executor,
    ) -> Result<Joined, CloseCode> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.bury_closed();
        let key = (peer, hello.link);
        if let Some(link) = inner.links.get(&key) {
            return Ok(Joined::Known(Arc::clone(link)));
        }
        if inner.closed.contains(&key) {
            return Err(CloseCode::LinkClosed);
        }
        if hello.rejoin {
            return Err(CloseCode::UnknownLink);
        }
        let of_peer = inner.links.keys().filter(|(owner, _)| *owner == peer).count();
        if of_peer >= LINKS_PER_PEER || inner.links.len() >= LINKS_MAX {
            return Err(CloseCode::Limit);
        }
        let link = Link::start(hello.link, peer, options.clone(), executor.clone());
        inner.links.insert(key, Arc::clone(&link));
        Ok(Joined::New(link))
    }

    /// Counts a connection that has proved its key and owes its hello; `None` if that peer has too many.
    pub(crate) fn admit(self: &Arc<Self>, peer: PeerKey) -> Option<Pending> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let count = inner.pending.entry(peer).or_default();
        if *count >= PENDING_PER_PEER {
            return None;
        }
        *count += 1;
        Some(Pending { registry: Arc::clone(self), peer })
    }
}

impl Inner {
    fn bury_closed(&mut self) {
        let closed = self.links.iter().filter(|(_, link)| link.close_reason().is_some());
        let closed: Vec<Key> = closed.map(|(key, _)| *key).collect();
        for key in closed {
            self.links.remove(&key);
            if self.closed.len() == CLOSED_REMEMBERED {
                self.closed.pop_front();
            }
            self.closed.push_back(key);
        }
    }
}

/// One counted connection before its hello.
#[derive(Debug)]
pub(crate) struct Pending {
    registry: Arc<Registry>,
    peer: PeerKey,
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut inner = self.registry.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = inner.pending.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                inner.pending.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rhizomorph_proto::ids::PathId;

    use super::*;
    use crate::close::CloseReason;
    use crate::runtime::RuntimeChoice;

    fn hello(number: u8, rejoin: bool) -> Hello {
        let path = PathId::new(0).unwrap();
        Hello { link: LinkId([number; 16]), path, attempt: 1, rejoin, label: Bytes::new() }
    }

    fn join(registry: &Registry, peer: u8, hello: &Hello) -> Result<Joined, CloseCode> {
        let executor = Executor::new(RuntimeChoice::Current).unwrap();
        registry.join(PeerKey([peer; 32]), hello, &LinkOptions::default(), &executor)
    }

    #[tokio::test]
    async fn a_second_connection_joins_and_another_peer_with_the_same_id_does_not() {
        let registry = Registry::default();
        let Ok(Joined::New(first)) = join(&registry, 1, &hello(1, false)) else { panic!() };
        let Ok(Joined::Known(same)) = join(&registry, 1, &hello(1, true)) else { panic!() };
        assert!(Arc::ptr_eq(&first, &same));
        assert!(matches!(join(&registry, 2, &hello(1, false)), Ok(Joined::New(_))));
    }

    #[tokio::test]
    async fn a_closed_link_stays_closed_and_an_unknown_rejoin_is_refused() {
        let registry = Registry::default();
        let Ok(Joined::New(link)) = join(&registry, 1, &hello(1, false)) else { panic!() };
        link.close(CloseReason::Local);
        assert_eq!(join(&registry, 1, &hello(1, false)).unwrap_err(), CloseCode::LinkClosed);
        assert_eq!(join(&registry, 1, &hello(2, true)).unwrap_err(), CloseCode::UnknownLink);
    }

    #[tokio::test]
    async fn links_and_pending_connections_of_one_peer_are_bounded() {
        let registry = Arc::new(Registry::default());
        for number in 0..LINKS_PER_PEER {
            join(&registry, 1, &hello(u8::try_from(number).unwrap(), false)).unwrap();
        }
        assert_eq!(join(&registry, 1, &hello(200, false)).unwrap_err(), CloseCode::Limit);
        assert!(join(&registry, 2, &hello(200, false)).is_ok());

        let key = PeerKey([1; 32]);
        let pending: Vec<_> = (0..PENDING_PER_PEER).map(|_| registry.admit(key).unwrap()).collect();
        assert!(registry.admit(key).is_none());
        drop(pending);
        assert!(registry.admit(key).is_some());
    }
}
