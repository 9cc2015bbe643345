//! The frames of a link. Every one carries its version, is bounded, and is refused unless its length is exact.
//!
//! | frame | travels | layout (network byte order) |
//! | --- | --- | --- |
//! | [`Hello`] | first stream of a connection, dialer to listener | magic, version, body length, link, path, flags, attempt, label |
//! | [`Welcome`] | answer on the same stream | magic, version, body length, listener instance |
//! | [`StripeHeader`] | head of each one-way stream, then the stripe's bytes | 24 bytes |
//! | [`Datagram`] | QUIC datagram | version, kind, body |

mod datagram;
mod error;
mod hello;
mod stripe;

pub use datagram::{Datagram, encode_app};
pub use error::{Frame, FrameError};
pub use hello::{Hello, Welcome};
pub use stripe::{STRIPE_HEADER_LEN, StripeHeader};

/// Version of all frames. A peer that speaks another is refused at the hello.
pub const VERSION: u16 = 1;

/// The version as the one byte that stripes and datagrams carry.
const VERSION_BYTE: u8 = 1;
