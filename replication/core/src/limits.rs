//! Every bound of this crate with its unit and its reason.

/// Bytes of a VM's name: fits a DNS label and one line of a table.
pub const VM_ID_BYTES: usize = 64;
/// Replicas of one VM at a time, seeding ones included; each costs a full stream of pages.
pub const PEERS: usize = 4;
/// Operation ids kept in a record. A proposer has one operation in flight, so its lost reply is settled long before
/// this many others have followed.
pub const RECENT_OPS: usize = 16;
/// Epochs that may be partly staged at once; the primary keeps at most two unacknowledged.
pub const OPEN_EPOCHS: usize = 8;
/// Parts of one epoch: 4 MiB parts make this 256 GiB of RAM.
pub const EPOCH_PARTS: u32 = 65_536;
/// Bytes of saved vCPU and device state in one epoch.
pub const STATE_BYTES: usize = 4 << 20;
/// Gated outputs in one epoch message, and in the gate.
pub const OUTPUTS: usize = 65_536;
/// Bytes the output gate holds before the devices must wait.
pub const GATE_BYTES: usize = 8 << 20;
/// Bytes of one output or one ingress frame: the largest Ethernet frame a tap hands over, and the header before it.
pub const FRAME_BYTES: usize = 65_562;
/// Frames in one ingress message.
pub const INGRESS_BATCH: usize = 1024;
/// Highest number of a forwarded frame: no machine counts that far, and counting on from it cannot overflow.
pub const INGRESS_SEQ: u64 = u64::MAX >> 1;
/// Bytes of forwarded ingress a replica keeps; older frames are given up (the client retransmits).
pub const INGRESS_BYTES: usize = 8 << 20;
/// Bytes of a machine fingerprint in the handshake.
pub const FINGERPRINT_BYTES: usize = 256 << 10;
/// Bytes of a refusal's text.
pub const REASON_BYTES: usize = 1024;
