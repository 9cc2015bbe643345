//! Every bound of this crate with its unit and its reason.

/// Addresses in one invitation: every interface of a well-connected node.
pub const ADDRESSES: usize = 8;
/// Bytes of an invitation's binary form: fixed fields, eight IPv6 addresses and the signature come to 314.
pub const INVITATION_BYTES: usize = 384;
/// Characters of an invitation's text form: its bytes in base64 and the prefix.
pub const INVITATION_CHARS: usize = 540;
/// Seconds an invitation may live: whoever holds one may join, so a forgotten one must not be good for years.
pub const LIFETIME_S: u64 = 30 * 24 * 3600;
/// Seconds a fresh invitation may seem to come from the future: what joining tolerates between two clocks.
pub const CLOCK_TOLERANCE_S: u64 = 30;
/// Bytes of a node's name: fits a DNS label and a column of a table.
pub const NAME_BYTES: usize = 63;
/// Bytes of `network.json` and other files of the folder: thousands of members are far below.
pub const FILE_BYTES: u64 = 64 << 20;
