//! Every bound of the running link, with its unit and its reason. Those of the frames are in
//! [`rhizomorph_proto::limits`].

use std::time::Duration;

pub use rhizomorph_proto::limits::{BUNDLE_MAX, DATAGRAM_MAX, LABEL_MAX, PATHS_MAX};

/// Bytes of unacknowledged bulk bundles of one link: two of the largest, so that one travels while the other is
/// being taken.
pub const BULK_WINDOW: usize = 32 * 1024 * 1024;

/// Bytes of unacknowledged control bundles of one link: one of the largest must fit.
pub const CONTROL_WINDOW: usize = 16 * 1024 * 1024;

/// Bytes every bundle counts for at least: its bookkeeping.
pub const BUNDLE_COST_MIN: usize = 4 * 1024;

const _: () = assert!(
    BULK_WINDOW + CONTROL_WINDOW <= rhizomorph_proto::limits::HELD_BYTES_MAX,
    "a receiver must be able to hold what a sender may send"
);

/// Bytes QUIC may have under way on one connection, each way: 64 MiB was measured to overflow the socket buffers and
/// lose 2 to 5 % on loopback, 4 MiB lost nothing.
pub const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// Bytes asked for as each socket's send and receive buffer; the kernel caps it at `net.core.{r,w}mem_max`.
pub const SOCKET_BUFFER: usize = 4 * 1024 * 1024;

/// Stripes of one connection under way at once: what a peer can make us hold buffers for.
pub const STREAMS_PER_CONNECTION: u32 = 128;

/// Bytes of datagrams waiting to be sent on one connection: older ones are dropped first, they are stale by then.
pub const DATAGRAM_SEND_BUFFER: usize = 64 * 1024;

/// Bytes of datagrams QUIC holds until our reader task runs.
pub const DATAGRAM_RECEIVE_BUFFER: usize = 256 * 1024;

/// Datagrams waiting for the application; beyond it the oldest are dropped.
pub const DATAGRAMS_QUEUED: usize = 4096;

/// Path events waiting for the application; beyond it the oldest are dropped.
pub const PATH_EVENTS_QUEUED: usize = 256;

/// Paths a datagram is sent on.
pub const DATAGRAM_COPIES: usize = 2;

/// Stripe buffers kept for reuse: first touch of fresh memory costs more than the network does.
pub const POOLED_BUFFERS: usize = 256;

/// Pause between two looks at the paths. Adds to the time a silence needs to be noticed.
pub const WATCH_EVERY: Duration = Duration::from_millis(10);

/// QUIC sends a PING when it heard nothing for this long, so that a live path is never silent for long.
pub const KEEP_ALIVE: Duration = Duration::from_millis(25);

/// QUIC gives up a silent connection after this; ours was replaced long before.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Round-trip time assumed before the first measurement: its triple is the first handshake retransmission, and
/// QUIC's default of 333 ms would find a returned path a second late.
pub const INITIAL_RTT: Duration = Duration::from_millis(100);

/// One dial of one path, handshake and hello: room for three retransmissions.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection that lived this long makes the pauses between dials start over.
pub const STABLE_AFTER: Duration = Duration::from_secs(1);

/// What [`dial`](crate::dial) waits for the first path unless told otherwise.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// What a listener waits for a peer's handshake and hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(3);

/// Connections of one listener between first packet and hello, all peers together.
pub const PENDING_MAX: usize = 64;

/// Connections of one authenticated peer between handshake and hello: all paths of two links.
pub const PENDING_PER_PEER: usize = 2 * PATHS_MAX;

/// Open links of one peer at one listener.
pub const LINKS_PER_PEER: usize = 16;

/// Open links of one listener.
pub const LINKS_MAX: usize = 256;

/// Links waiting for [`LinkListener::accept`](crate::LinkListener::accept).
pub const ACCEPT_BACKLOG: usize = 64;

/// Closed links a listener remembers, so that a late redial is told instead of being taken for a new link.
pub const CLOSED_REMEMBERED: usize = 1024;

/// Addresses one listener binds or one ticket names.
pub const ADDRESSES_MAX: usize = PATHS_MAX;

/// Bytes of a key file: a PKCS#8 PEM of an Ed25519 key has about 200.
pub const KEY_FILE_MAX: u64 = 4096;

/// How long a dedicated runtime lives on after its last link closed, for QUIC to tell the peers.
pub const CLOSE_LINGER: Duration = Duration::from_millis(100);
