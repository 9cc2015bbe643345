//! One logical link over many QUIC connections.
//!
//! Two nodes that know each other's Ed25519 key open a *link*: one QUIC connection per *path*, each on its own
//! socket. *Bundles* are cut into stripes over all live paths and arrive exactly once; *datagrams* leave on the two
//! best paths and arrive at most once, ahead of bundles. A path that falls silent loses its load to the others within
//! about 100 ms and is redialed until it is back. The link judges paths, never the peer: while no path is up it waits.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use rhizomorph_link::*;
//! let (here, there) = (Identity::generate()?, Identity::generate()?);
//! let binds = vec!["127.0.0.1:0".parse()?, "127.0.0.1:0".parse()?];
//! let allow = AllowList::only([here.peer_key()]);
//! let (peer, options) = (there.peer_key(), LinkOptions::default());
//! let listener = LinkListener::bind(ListenConfig { identity: there, allow, binds, options: options.clone() })?;
//! let paths = listener.local_addrs().iter().map(|addr| PathSpec::from(*addr)).collect();
//! let (sender, _events) = dial(DialConfig { identity: here, peer, paths, label: "vm-1".into(), options }).await?;
//! let mut incoming = listener.accept().await.ok_or("listener ended")?;
//! let receipt = sender.send_bundle(Priority::Bulk, vec![7; 1 << 20]).await?;
//! while let Some(event) = incoming.receiver.recv().await {
//!     if let LinkEvent::Bundle { payload, .. } = event { assert_eq!(payload.len(), 1 << 20); break }
//! }
//! receipt.acked().await?;
//! # Ok(()) }
//! ```
//!
//! Where to read on: the wire and all decisions are in `rhizomorph-proto`; here, `link.rs` holds the state, `path/`
//! the tasks of a connection, `dialer.rs` and `listener.rs` how connections come to be.

mod close;
mod dialer;
mod error;
mod events;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod handle;
mod handshake;
mod identity;
pub mod limits;
mod link;
mod listener;
mod options;
mod path;
mod path_info;
mod payload;
mod peer_key;
mod pool;
mod receiver;
mod registry;
mod runtime;
mod sender;
mod socket;
mod ticket;
pub mod tls;
mod transport;
mod watch;

pub use close::{CloseReason, DownReason};
pub use dialer::{DialConfig, PathSpec, dial};
pub use error::{DialError, FailReason, ListenError, PathFailure, SendError};
pub use events::{Arrived, LinkEvent};
pub use identity::{Identity, IdentityError};
pub use listener::{IncomingLink, LinkListener, ListenConfig};
pub use options::LinkOptions;
pub use path_info::{PathInfo, PathState};
pub use payload::Payload;
pub use peer_key::{PeerKey, PeerKeyError};
pub use receiver::LinkReceiver;
pub use rhizomorph_proto::ids::{BundleId, LinkId, PathId, Priority};
pub use runtime::{RuntimeChoice, RuntimeError};
pub use sender::{BundleReceipt, LinkSender};
pub use ticket::{Ticket, TicketError};
pub use tls::{AllowList, TlsError};
pub use transport::MtuPolicy;
