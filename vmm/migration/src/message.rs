//! What the two sides say, and its encoding.
//!
//! Every message is one frame: version (1 byte), kind (1 byte), body. Integers are little-endian, byte strings carry a `u32`
//! length. Decoding checks every length before it allocates and refuses trailing bytes.

use bytes::{BufMut, Bytes, BytesMut};
use mycelium_ram_core::codec::{DecodeError, Reader};

use crate::limits;

/// Version of the frames; sides of different versions refuse each other.
pub const WIRE_VERSION: u8 = 1;

/// How memory moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// All of it before the guest moves, in rounds.
    #[default]
    PreCopy,
    /// One round before, the rest while the guest runs at the destination.
    PostCopy,
}

/// One disk, as the guest knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFacts {
    /// Its serial number.
    pub serial: String,
    /// Its size, bytes.
    pub bytes: u64,
}

/// First message of the source: here is a VM, would you run it?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// What its machine is made of, in the machine's own encoding; compared by the destination.
    pub fingerprint: Bytes,
    /// Its disks, in order.
    pub disks: Vec<DiskFacts>,
    /// How its memory will move.
    pub mode: Mode,
}

/// Everything but memory; with it and all messages before it the VM is whole, or as whole as post-copy asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// Messages of memory ([`Message::Pages`], [`Message::Missing`]) sent since the offer.
    pub messages: u64,
    /// Digest of memory, see [`crate::PageDigest`]: of what was sent, or of all RAM as it stands.
    pub digest: u64,
    /// The digest is of all RAM as it stands, read anew.
    pub verified: bool,
    /// How memory moves: with post-copy, `Missing` named what is not there yet.
    pub mode: Mode,
    /// Real time from the moment the state was saved to the moment this message left, and as long as the way takes, ns.
    pub elapsed_ns: u64,
    /// Bytes the guest has said on its console.
    pub console_bytes: u64,
    /// The guest stands by order of the operator, and shall stand at the destination.
    pub held: bool,
    /// vCPUs and devices, in the machine's own encoding.
    pub state: Bytes,
}

/// Pages, asked for or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Number of the [`Want`] this answers; 0 for pages nobody asked for.
    pub want: u64,
    /// Encoded pages, see [`crate::batch`].
    pub batch: Bytes,
}

/// Pages that the guest at the destination waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Its number, from 1 on.
    pub id: u64,
    /// The first page.
    pub first_page: u64,
    /// How many.
    pub pages: u64,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Source: see [`Offer`].
    Offer(Offer),
    /// Destination: send it.
    Accept,
    /// Destination: no, and why.
    Refuse(String),
    /// Source: see [`Pages`].
    Pages(Pages),
    /// Source: pages that are not at the destination yet, see [`crate::runs`].
    Missing(Bytes),
    /// Source: see [`Switch`].
    Switch(Switch),
    /// Destination: everything is restored and checked.
    Ready {
        /// How long that took, microseconds.
        restore_us: u64,
    },
    /// Source: the guest is yours, and so are its disks.
    Go,
    /// Destination: it runs here.
    Running {
        /// How long taking the disks took, microseconds.
        disks_us: u64,
        /// How long resuming took, microseconds.
        resume_us: u64,
    },
    /// Destination: it does not run here and never will, and why.
    Stay(String),
    /// Source: it stays here, and why.
    Abort(String),
    /// Destination, post-copy: see [`Want`].
    Want(Want),
    /// Destination, post-copy: every page is here.
    Complete,
    /// Both: still there.
    Beat,
}

impl Message {
    /// As a frame.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(256);
        out.put_u8(WIRE_VERSION);
        out.put_u8(self.kind());
        self.put_body(&mut out);
        out.freeze()
    }

    /// What comes before a batch in a frame of pages: a sender need not copy them into one piece.
    #[must_use]
    pub fn pages_head(want: u64, batch_bytes: usize) -> Bytes {
        let mut out = BytesMut::with_capacity(16);
        out.put_u8(WIRE_VERSION);
        out.put_u8(KIND_PAGES);
        out.put_u64_le(want);
        out.put_u32_le(u32::try_from(batch_bytes).expect("a batch is bounded"));
        out.freeze()
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Offer(_) => 0,
            Self::Accept => 1,
            Self::Refuse(_) => 2,
            Self::Pages(_) => KIND_PAGES,
            Self::Missing(_) => 4,
            Self::Switch(_) => 5,
            Self::Ready { .. } => 6,
            Self::Go => 7,
            Self::Running { .. } => 8,
            Self::Stay(_) => 9,
            Self::Abort(_) => 10,
            Self::Want(_) => 11,
            Self::Complete => 12,
            Self::Beat => 13,
        }
    }

    fn put_body(&self, out: &mut BytesMut) {
        match self {
            Self::Accept | Self::Go | Self::Complete | Self::Beat => {}
            Self::Offer(offer) => offer.put(out),
            Self::Switch(switch) => switch.put(out),
            Self::Refuse(reason) | Self::Stay(reason) | Self::Abort(reason) => put_reason(out, reason),
            Self::Pages(pages) => {
                out.put_u64_le(pages.want);
                put_bytes(out, &pages.batch);
            }
            Self::Missing(runs) => put_bytes(out, runs),
            Self::Ready { restore_us } => out.put_u64_le(*restore_us),
            Self::Running { disks_us, resume_us } => {
                out.put_u64_le(*disks_us);
                out.put_u64_le(*resume_us);
            }
            Self::Want(want) => {
                [want.id, want.first_page, want.pages].into_iter().for_each(|field| out.put_u64_le(field));
            }
        }
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field.
    pub fn decode(frame: &Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(frame);
        let version = reader.u8("version")?;
        if version != WIRE_VERSION {
            return Err(DecodeError::Version { got: version, want: WIRE_VERSION });
        }
        let message = Self::decode_body(&mut reader)?;
        reader.finish()?;
        Ok(message)
    }

    fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        let reason = |reader: &mut Reader| reader.text("reason", limits::REASON_BYTES_MAX);
        Ok(match reader.u8("kind")? {
            0 => Self::Offer(Offer::take(reader)?),
            1 => Self::Accept,
            2 => Self::Refuse(reason(reader)?),
            KIND_PAGES => Self::Pages(Pages {
                want: reader.u64("want")?,
                batch: reader.bytes("batch", crate::batch::BATCH_BYTES_MAX)?,
            }),
            4 => Self::Missing(reader.bytes("runs", crate::runs::RUNS_BYTES_MAX)?),
            5 => Self::Switch(Switch::take(reader)?),
            6 => Self::Ready { restore_us: reader.u64("restore time")? },
            7 => Self::Go,
            8 => Self::Running { disks_us: reader.u64("disks time")?, resume_us: reader.u64("resume time")? },
            9 => Self::Stay(reason(reader)?),
            10 => Self::Abort(reason(reader)?),
            11 => Self::Want(Want {
                id: reader.u64("want id")?,
                first_page: reader.u64("first page")?,
                pages: reader.u64("pages")?,
            }),
            12 => Self::Complete,
            13 => Self::Beat,
            other => return Err(DecodeError::Value { what: "kind", got: u64::from(other) }),
        })
    }
}

const KIND_PAGES: u8 = 3;

impl Offer {
    fn put(&self, out: &mut BytesMut) {
        put_bytes(out, &self.fingerprint);
        out.put_u32_le(u32::try_from(self.disks.len()).unwrap_or(u32::MAX));
        for disk in &self.disks {
            put_bytes(out, disk.serial.as_bytes());
            out.put_u64_le(disk.bytes);
        }
        out.put_u8(u8::from(self.mode == Mode::PostCopy));
    }

    fn take(reader: &mut Reader) -> Result<Self, DecodeError> {
        let fingerprint = reader.bytes("fingerprint", limits::FINGERPRINT_BYTES_MAX)?;
        let count = reader.count("disks", limits::DISKS_MAX)?;
        let disk = |reader: &mut Reader| {
            let serial = reader.text("disk serial", limits::SERIAL_BYTES_MAX)?;
            Ok(DiskFacts { serial, bytes: reader.u64("disk size")? })
        };
        let disks = (0..count).map(|_| disk(reader)).collect::<Result<_, DecodeError>>()?;
        Ok(Self { fingerprint, disks, mode: take_mode(reader)? })
    }
}

impl Switch {
    fn put(&self, out: &mut BytesMut) {
        out.put_u64_le(self.messages);
        out.put_u64_le(self.digest);
        out.put_u8(u8::from(self.verified));
        out.put_u8(u8::from(self.mode == Mode::PostCopy));
        out.put_u64_le(self.elapsed_ns);
        out.put_u64_le(self.console_bytes);
        out.put_u8(u8::from(self.held));
        put_bytes(out, &self.state);
    }

    fn take(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            messages: reader.u64("message count")?,
            digest: reader.u64("digest")?,
            verified: take_flag(reader, "verified flag")?,
            mode: take_mode(reader)?,
            elapsed_ns: reader.u64("elapsed time")?,
            console_bytes: reader.u64("console bytes")?,
            held: take_flag(reader, "held flag")?,
            state: reader.bytes("state", limits::STATE_BYTES_MAX)?,
        })
    }
}

fn take_flag(reader: &mut Reader, what: &'static str) -> Result<bool, DecodeError> {
    match reader.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(DecodeError::Value { what, got: u64::from(other) }),
    }
}

fn take_mode(reader: &mut Reader) -> Result<Mode, DecodeError> {
    Ok(if take_flag(reader, "mode")? { Mode::PostCopy } else { Mode::PreCopy })
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).expect("what is sent is bounded"));
    out.put_slice(bytes);
}

/// A reason too long for the other side is cut, between characters.
fn put_reason(out: &mut BytesMut, reason: &str) {
    let end = reason.floor_char_boundary(limits::REASON_BYTES_MAX);
    put_bytes(out, &reason.as_bytes()[..end]);
}

/// Entry point for fuzzing: a frame, and what the receiver does with its pages.
#[cfg(feature = "fuzzing")]
pub fn fuzz_message(data: &[u8]) {
    const PAGES: u64 = 1 << 20;
    let Ok(message) = Message::decode(&Bytes::copy_from_slice(data)) else { return };
    assert_eq!(Message::decode(&message.encode()).as_ref(), Ok(&message));
    match &message {
        Message::Pages(pages) => {
            let _ = crate::batch::read(&pages.batch, PAGES, |page, _| assert!(page.0 < PAGES));
        }
        Message::Missing(runs) => {
            let mut missing = mycelium_ram_core::PageSet::empty(PAGES);
            let _ = crate::runs::read(runs, &mut missing);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
    }

    fn mode() -> impl Strategy<Value = Mode> {
        any::<bool>().prop_map(|post| if post { Mode::PostCopy } else { Mode::PreCopy })
    }

    fn disks() -> impl Strategy<Value = Vec<DiskFacts>> {
        let disk = ("[a-z]{0,20}", any::<u64>()).prop_map(|(serial, bytes)| DiskFacts { serial, bytes });
        proptest::collection::vec(disk, 0..5)
    }

    fn messages() -> impl Strategy<Value = Message> {
        let switch = (any::<[u64; 4]>(), any::<[bool; 2]>(), mode(), bytes(99)).prop_map(
            |([messages, digest, elapsed_ns, console_bytes], [verified, held], mode, state)| {
                Message::Switch(Switch {
                    messages,
                    digest,
                    verified,
                    mode,
                    elapsed_ns,
                    console_bytes,
                    held,
                    state,
                })
            },
        );
        prop_oneof![
            (bytes(99), disks(), mode()).prop_map(|(fingerprint, disks, mode)| Message::Offer(Offer {
                fingerprint,
                disks,
                mode
            })),
            (any::<u64>(), bytes(99)).prop_map(|(want, batch)| Message::Pages(Pages { want, batch })),
            bytes(99).prop_map(Message::Missing),
            switch,
            any::<[u64; 3]>().prop_map(|[id, first_page, pages]| Message::Want(Want {
                id,
                first_page,
                pages
            })),
            any::<[u64; 2]>().prop_map(|[disks_us, resume_us]| Message::Running { disks_us, resume_us }),
            any::<u64>().prop_map(|restore_us| Message::Ready { restore_us }),
            prop_oneof![
                Just(Message::Accept),
                Just(Message::Go),
                Just(Message::Complete),
                Just(Message::Beat)
            ],
            ".{0,40}".prop_flat_map(|reason| prop_oneof![
                Just(Message::Refuse(reason.clone())),
                Just(Message::Stay(reason.clone())),
                Just(Message::Abort(reason))
            ]),
        ]
    }

    #[test]
    fn a_reason_that_is_too_long_is_cut_between_characters() {
        let reason = "ä".repeat(limits::REASON_BYTES_MAX);
        let Ok(Message::Abort(cut)) = Message::decode(&Message::Abort(reason).encode()) else { panic!() };
        assert_eq!(cut.len(), limits::REASON_BYTES_MAX);
    }

    #[test]
    fn another_version_is_named() {
        let refused = Message::decode(&Bytes::from_static(&[9, 1])).unwrap_err();
        assert_eq!(refused, DecodeError::Version { got: 9, want: WIRE_VERSION });
    }

    proptest! {
        #[test]
        fn messages_survive_the_wire(message in messages()) {
            let frame = message.encode();
            prop_assert_eq!(Message::decode(&frame), Ok(message));
            for cut in 0..frame.len() {
                prop_assert!(Message::decode(&frame.slice(..cut)).is_err());
            }
        }

        #[test]
        fn a_head_and_its_batch_are_a_frame_of_pages(want: u64, batch in bytes(99)) {
            let frame = [Message::pages_head(want, batch.len()), batch.clone()].concat();
            prop_assert_eq!(Message::decode(&frame.into()), Ok(Message::Pages(Pages { want, batch })));
        }

        #[test]
        fn garbage_never_panics(data in bytes(300)) {
            let _ = Message::decode(&data);
        }
    }
}
