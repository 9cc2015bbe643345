//! Every bound of the wire format and its state machines, with its unit and its reason.

use std::time::Duration;

/// Paths of one link. Path sets are carried in 16-bit masks, and no machine we know of has eight independent uplinks.
pub const PATHS_MAX: usize = 8;

/// Bytes of the label a dialer may attach (a VM id fits many times over).
pub const LABEL_MAX: usize = 256;

/// Bytes of a whole hello or welcome frame, header included: what a peer may make us buffer before it is known.
pub const HELLO_MAX: usize = 512;

/// Bytes of one application datagram. QUIC guarantees 1200-byte packets; headers, tag and our own frame leave 1100.
pub const DATAGRAM_MAX: usize = 1100;

/// Bytes of one encoded datagram frame.
pub const DATAGRAM_FRAME_MAX: usize = DATAGRAM_MAX + 10;

/// Bytes of one bundle. Larger messages are sent as several: a receiver must be able to hold a few at once.
pub const BUNDLE_MAX: usize = 16 * 1024 * 1024;

/// Smallest stripe in bytes: below this the per-stream cost shows, and a bundle would have too many stripes.
pub const STRIPE_MIN: usize = 16 * 1024;

/// Stripe size in bytes unless told otherwise. See `examples/throughput.rs` of rhizomorph-link for the measurement.
pub const STRIPE_DEFAULT: usize = 128 * 1024;

/// Largest stripe in bytes: a receiver holds one buffer of this size for each stripe being read.
pub const STRIPE_MAX: usize = 256 * 1024;

/// Stripes of one bundle, so that a status bitmap always fits one datagram.
pub const STRIPES_MAX: usize = BUNDLE_MAX / STRIPE_MIN;

/// How many bundle ids may lie between the oldest unacknowledged one and the newest, on either end.
pub const BUNDLE_SPAN: u64 = 1024;

/// Bytes of bundles a receiver holds: those being reassembled and those the application has not taken yet.
/// A sender's two windows add up to less.
pub const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bundle ids in one acknowledgement or query datagram.
pub const ACK_IDS_MAX: usize = 64;

/// Sequence numbers a receiver remembers to recognise the second copy of a datagram. Copies arrive within one
/// round-trip difference of two paths: 4096 covers 150 ms at 27,000 datagrams a second.
pub const DEDUP_WINDOW: u64 = 4096;

/// Queued stripes the scheduler looks at before it gives up finding one that may leave now.
pub const LOOKAHEAD: usize = 256;

/// Bytes handed to one path and not yet delivered, at least: two of the largest stripes keep a path busy.
pub const PATH_QUEUE_MIN: u64 = 2 * STRIPE_MAX as u64;

/// Bytes handed to one path and not yet delivered, at most: what QUIC's own send window takes.
pub const PATH_QUEUE_MAX: u64 = 4 * 1024 * 1024;

/// Silence that makes a path suspect, at least. Keep-alives come every 25 ms and are acknowledged within another
/// 25 ms, so this is two of them lost and one scheduling delay.
pub const SILENCE_MIN: Duration = Duration::from_millis(100);

/// Silence that makes a path suspect, in round trips: one lost exchange and its repetition.
pub const SILENCE_RTTS: u32 = 4;

/// A suspect path silent this long is dialed anew: QUIC's own probes back off exponentially and would find a
/// returned path only after as long again as it was gone.
pub const STALE_AFTER: Duration = Duration::from_millis(300);

/// First pause between two dials of a path.
pub const REDIAL_MIN: Duration = Duration::from_millis(20);

/// Longest pause between two dials of a path: a returned path must be found soon.
pub const REDIAL_MAX: Duration = Duration::from_millis(500);

/// First wait for the acknowledgement of a bundle whose stripes all arrived, before asking for it.
pub const QUERY_MIN: Duration = Duration::from_millis(50);

/// Longest wait between two such questions.
pub const QUERY_MAX: Duration = Duration::from_secs(1);
