//! What two nodes say to each other about one VM, and its encoding.
//!
//! Every message is one frame: version (1 byte), kind (1 byte), body. Integers are little-endian, byte strings carry a
//! `u32` length. Decoding checks every length against `limits` before it allocates and refuses trailing bytes.

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{DecodeError, Reader};
use crate::ids::{EpochId, Generation, Incarnation, IngressSeq, Member, NodeId, VmId};
use crate::limits;
use crate::time::Time;

/// Version of the frames. Peers of another version refuse each other in the handshake. Since 2, a card's frames have a header
/// before them that says what is left to be done: checksums, segmentation. Since 4, parts of an epoch may be of disks.
pub const WIRE_VERSION: u8 = 5;

/// Where an output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// A network card, by its index.
    Net(u8),
    /// The serial console.
    Serial,
    /// A port of the paravirtual console, by its number.
    Console(u8),
    /// What the guest did to itself (power-off, reset, panic), for whoever runs it: a word of output like any other.
    Notice,
}

/// Something the guest said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Where it goes.
    pub port: Port,
    /// Offset of the first byte in a byte stream (serial); of a frame, by which pair of the card's queues it came; otherwise 0.
    pub offset: u64,
    /// The bytes; of a frame, with its header.
    pub data: Bytes,
}

/// First message from the active to a passive: here is a VM, would you be its replica?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which VM.
    pub vm: VmId,
    /// The active process.
    pub active: Member,
    /// Its generation.
    pub generation: Generation,
    /// What its machine is made of, in the machine's own encoding; compared by the passive side.
    pub fingerprint: Bytes,
}

/// The passive's consent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept {
    /// The passive process.
    pub replica: Member,
    /// The newest whole epoch it holds from this active, if it saw one before.
    pub staged: Option<EpochId>,
}

/// Sent by both sides every few milliseconds, on the two best paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Who sends.
    pub from: Member,
    /// The generation the sender believes in.
    pub generation: Generation,
    /// The sender's clock.
    pub sent_at: Time,
    /// The newest stamp of the receiver's that the sender has seen.
    pub echo: Option<Time>,
    /// Counter of the sender's epoch loop.
    pub progress: u64,
    /// From a replica: the newest whole epoch it holds, which acknowledges all up to it. From the active: the newest
    /// epoch released.
    pub epoch: Option<EpochId>,
}

/// An active has stopped its guest for the receiver to go on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Yield {
    /// Its generation.
    pub generation: Generation,
    /// The epoch at whose end the guest stands.
    pub epoch: EpochId,
    /// Its clock. Whoever has seen a later stamp has missed that the guest goes on after all.
    pub sent_at: Time,
}

/// What a part is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// Encoded pages, see [`crate::page_codec`].
    Pages,
    /// Encoded changes of disks, see [`crate::disk`].
    Disks,
}

/// A piece of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochPart {
    /// Which epoch.
    pub epoch: EpochId,
    /// The epoch this one is a difference to; none for a seed.
    pub base: Option<EpochId>,
    /// Position among the parts. A page that stands in several parts has the value of the last; changes of disks are made in
    /// the order of their parts.
    pub index: u32,
    /// What it is about.
    pub kind: PartKind,
    /// The pages or changes.
    pub payload: Bytes,
}

/// The rest of an epoch; with it and all parts the epoch is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochEnd {
    /// Which epoch.
    pub epoch: EpochId,
    /// The epoch this one is a difference to; none for a seed.
    pub base: Option<EpochId>,
    /// Number of parts.
    pub parts: u32,
    /// [`crate::stage::content_hash`] of the epoch.
    pub content_hash: u64,
    /// When the guest was stopped, on the active's clock.
    pub cut_at: Time,
    /// The newest epoch whose output has been released: the replica need not keep that output.
    pub released: EpochId,
    /// The newest ingress frame that the guest had been given.
    pub ingress: IngressSeq,
    /// vCPU and device state, in the machine's own encoding.
    pub state: Bytes,
    /// What the guest said in this epoch.
    pub outputs: Vec<Output>,
}

/// Frames given to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// Number of the first frame; the others follow without gap.
    pub first: IngressSeq,
    /// Card index and frame.
    pub frames: Vec<(u8, Bytes)>,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is documented at its struct")]
pub enum Message {
    Offer(Offer),
    Accept(Accept),
    /// The passive's refusal, with its reason.
    Refuse(String),
    Heartbeat(Heartbeat),
    Part(EpochPart),
    End(EpochEnd),
    Ingress(Ingress),
    /// A newer generation exists: the receiver is not the active any more.
    Deposed {
        generation: Generation,
        epoch: EpochId,
    },
    /// The active has stopped its guest: go on with it.
    Yield(Yield),
}

impl Message {
    /// Encodes the message as one frame.
    ///
    /// # Panics
    /// When a field exceeds its bound: our own code made it, so that is a bug here.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64 + self.bulk_len());
        out.put_u8(WIRE_VERSION);
        match self {
            Self::Offer(m) => {
                out.put_u8(1);
                put_bytes(&mut out, m.vm.as_str().as_bytes());
                put_member(&mut out, m.active);
                out.put_u64_le(m.generation.0);
                put_bytes(&mut out, &m.fingerprint);
            }
            Self::Accept(m) => {
                out.put_u8(2);
                put_member(&mut out, m.replica);
                put_option(&mut out, m.staged.map(|e| e.0));
            }
            Self::Refuse(reason) => {
                out.put_u8(3);
                let mut end = reason.len().min(limits::REASON_BYTES);
                while !reason.is_char_boundary(end) {
                    end -= 1;
                }
                put_bytes(&mut out, &reason.as_bytes()[..end]);
            }
            Self::Heartbeat(m) => {
                out.put_u8(4);
                put_heartbeat(&mut out, m);
            }
            Self::Part(m) => {
                out.put_u8(5);
                put_part_header(&mut out, m);
                put_bytes(&mut out, &m.payload);
            }
            Self::End(m) => {
                out.put_u8(6);
                put_end(&mut out, m);
            }
            Self::Ingress(m) => {
                out.put_u8(7);
                put_ingress(&mut out, m);
            }
            Self::Deposed { generation, epoch } => {
                out.put_u8(8);
                out.put_u64_le(generation.0);
                out.put_u64_le(epoch.0);
            }
            Self::Yield(said) => {
                out.put_u8(9);
                out.put_u64_le(said.generation.0);
                out.put_u64_le(said.epoch.0);
                out.put_u64_le(said.sent_at.0);
            }
        }
        out.freeze()
    }

    /// Decodes one frame.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field that is wrong.
    pub fn decode(frame: &Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(frame);
        let version = r.u8("version")?;
        if version != WIRE_VERSION {
            return Err(DecodeError::Version { got: version, want: WIRE_VERSION });
        }
        let message = match r.u8("kind")? {
            1 => Self::Offer(Offer {
                vm: get_vm(&mut r)?,
                active: get_member(&mut r)?,
                generation: Generation(r.u64("generation")?),
                fingerprint: r.bytes("fingerprint", limits::FINGERPRINT_BYTES)?,
            }),
            2 => Self::Accept(Accept {
                replica: get_member(&mut r)?,
                staged: r.option_u64("staged epoch")?.map(EpochId),
            }),
            3 => Self::Refuse(r.text("reason", limits::REASON_BYTES)?),
            4 => Self::Heartbeat(get_heartbeat(&mut r)?),
            5 => Self::Part(get_part(&mut r)?),
            6 => Self::End(get_end(&mut r)?),
            7 => Self::Ingress(get_ingress(&mut r)?),
            8 => Self::Deposed {
                generation: Generation(r.u64("generation")?),
                epoch: EpochId(r.u64("epoch")?),
            },
            9 => {
                let (generation, epoch) = (Generation(r.u64("generation")?), EpochId(r.u64("epoch")?));
                Self::Yield(Yield { generation, epoch, sent_at: Time(r.u64("stamp")?) })
            }
            other => return Err(DecodeError::Value { what: "kind", got: u64::from(other) }),
        };
        r.finish()?;
        Ok(message)
    }

    fn bulk_len(&self) -> usize {
        match self {
            Self::Part(m) => m.payload.len(),
            Self::End(m) => m.state.len() + m.outputs.iter().map(|o| o.data.len() + 16).sum::<usize>(),
            Self::Ingress(m) => m.frames.iter().map(|(_, f)| f.len() + 8).sum(),
            Self::Offer(m) => m.fingerprint.len(),
            _ => 64,
        }
    }
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).expect("bounded by limits"));
    out.put_slice(bytes);
}

fn put_option(out: &mut BytesMut, value: Option<u64>) {
    out.put_u8(u8::from(value.is_some()));
    out.put_u64_le(value.unwrap_or(0));
}

fn put_member(out: &mut BytesMut, m: Member) {
    out.put_slice(&m.node.0);
    out.put_u64_le(m.incarnation.0);
}

fn get_member(r: &mut Reader) -> Result<Member, DecodeError> {
    Ok(Member { node: NodeId(r.array("node id")?), incarnation: Incarnation(r.u64("incarnation")?) })
}

fn get_vm(r: &mut Reader) -> Result<VmId, DecodeError> {
    let name = r.text("VM name", limits::VM_ID_BYTES)?;
    VmId::new(name).map_err(|_| DecodeError::Text { what: "VM name" })
}

fn put_heartbeat(out: &mut BytesMut, m: &Heartbeat) {
    put_member(out, m.from);
    out.put_u64_le(m.generation.0);
    out.put_u64_le(m.sent_at.0);
    put_option(out, m.echo.map(|t| t.0));
    out.put_u64_le(m.progress);
    put_option(out, m.epoch.map(|e| e.0));
}

fn get_heartbeat(r: &mut Reader) -> Result<Heartbeat, DecodeError> {
    Ok(Heartbeat {
        from: get_member(r)?,
        generation: Generation(r.u64("generation")?),
        sent_at: Time(r.u64("stamp")?),
        echo: r.option_u64("echo")?.map(Time),
        progress: r.u64("progress")?,
        epoch: r.option_u64("epoch")?.map(EpochId),
    })
}

fn put_part_header(out: &mut BytesMut, m: &EpochPart) {
    out.put_u64_le(m.epoch.0);
    put_option(out, m.base.map(|e| e.0));
    out.put_u32_le(m.index);
    out.put_u8(match m.kind {
        PartKind::Pages => 0,
        PartKind::Disks => 1,
    });
}

fn get_part(r: &mut Reader) -> Result<EpochPart, DecodeError> {
    Ok(EpochPart {
        epoch: EpochId(r.u64("epoch")?),
        base: r.option_u64("base")?.map(EpochId),
        index: r.u32("part index")?,
        kind: match r.u8("kind of part")? {
            0 => PartKind::Pages,
            1 => PartKind::Disks,
            other => return Err(DecodeError::Value { what: "kind of part", got: u64::from(other) }),
        },
        payload: r.bytes("pages", crate::page_codec::PART_BYTES_MAX)?,
    })
}

fn put_end(out: &mut BytesMut, m: &EpochEnd) {
    out.put_u64_le(m.epoch.0);
    put_option(out, m.base.map(|e| e.0));
    out.put_u32_le(m.parts);
    out.put_u64_le(m.content_hash);
    out.put_u64_le(m.cut_at.0);
    out.put_u64_le(m.released.0);
    out.put_u64_le(m.ingress.0);
    put_bytes(out, &m.state);
    out.put_u32_le(u32::try_from(m.outputs.len()).expect("bounded by limits"));
    for output in &m.outputs {
        let (port, number) = match output.port {
            Port::Net(nic) => (0, nic),
            Port::Serial => (1, 0),
            Port::Notice => (2, 0),
            Port::Console(number) => (3, number),
        };
        out.put_slice(&[port, number]);
        out.put_u64_le(output.offset);
        put_bytes(out, &output.data);
    }
}

fn get_end(r: &mut Reader) -> Result<EpochEnd, DecodeError> {
    let mut end = EpochEnd {
        epoch: EpochId(r.u64("epoch")?),
        base: r.option_u64("base")?.map(EpochId),
        parts: r.u32("part count")?,
        content_hash: r.u64("content hash")?,
        cut_at: Time(r.u64("cut stamp")?),
        released: EpochId(r.u64("released epoch")?),
        ingress: get_ingress_seq(r)?,
        state: r.bytes("state", limits::STATE_BYTES + 1)?,
        outputs: Vec::new(),
    };
    if end.parts > limits::EPOCH_PARTS {
        return Err(DecodeError::Value { what: "part count", got: u64::from(end.parts) });
    }
    let outputs = r.count("outputs", limits::OUTPUTS)?;
    for _ in 0..outputs {
        end.outputs.push(get_output(r)?);
    }
    Ok(end)
}

fn get_output(r: &mut Reader) -> Result<Output, DecodeError> {
    let (port, number) = (r.u8("output port")?, r.u8("card")?);
    let port = match port {
        0 => Port::Net(number),
        1 => Port::Serial,
        2 => Port::Notice,
        3 => Port::Console(number),
        other => return Err(DecodeError::Value { what: "output port", got: u64::from(other) }),
    };
    Ok(Output { port, offset: r.u64("output offset")?, data: r.bytes("output", limits::FRAME_BYTES)? })
}

fn put_ingress(out: &mut BytesMut, m: &Ingress) {
    out.put_u64_le(m.first.0);
    out.put_u32_le(u32::try_from(m.frames.len()).expect("bounded by limits"));
    for (nic, frame) in &m.frames {
        out.put_u8(*nic);
        put_bytes(out, frame);
    }
}

fn get_ingress_seq(r: &mut Reader) -> Result<IngressSeq, DecodeError> {
    match r.u64("ingress number")? {
        got if got > limits::INGRESS_SEQ => Err(DecodeError::Value { what: "ingress number", got }),
        seq => Ok(IngressSeq(seq)),
    }
}

fn get_ingress(r: &mut Reader) -> Result<Ingress, DecodeError> {
    let first = get_ingress_seq(r)?;
    let count = r.count("ingress frames", limits::INGRESS_BATCH)?;
    let mut frames = Vec::new();
    for _ in 0..count {
        frames.push((r.u8("card")?, r.bytes("ingress frame", limits::FRAME_BYTES)?));
    }
    Ok(Ingress { first, frames })
}

/// A frame of any content, of the version spoken here: inputs found once are of use as long as their messages are.
#[cfg(feature = "fuzzing")]
#[must_use]
pub fn fuzzed_frame(data: &[u8]) -> Bytes {
    let mut frame = data.to_vec();
    frame.first_mut().into_iter().for_each(|version| *version = WIRE_VERSION);
    frame.into()
}

/// Entry point for fuzzing: whatever decodes must encode to the same bytes.
#[cfg(feature = "fuzzing")]
pub fn fuzz_message(data: &[u8]) {
    let frame = fuzzed_frame(data);
    if let Ok(message) = Message::decode(&frame) {
        let again = Message::decode(&message.encode()).expect("what we encode, we decode");
        assert_eq!(message, again);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::member;
    use proptest::prelude::*;

    fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
    }

    fn epoch() -> impl Strategy<Value = Option<EpochId>> {
        proptest::option::of(any::<u64>().prop_map(EpochId))
    }

    fn output() -> impl Strategy<Value = Output> {
        let port = prop_oneof![
            any::<u8>().prop_map(Port::Net),
            Just(Port::Serial),
            Just(Port::Notice),
            any::<u8>().prop_map(Port::Console)
        ];
        (port, any::<u64>(), bytes(80)).prop_map(|(port, offset, data)| Output { port, offset, data })
    }

    fn end() -> impl Strategy<Value = Message> {
        let head = (any::<u64>(), epoch(), 0..=limits::EPOCH_PARTS, any::<u64>(), any::<u64>());
        (head, any::<u64>(), bytes(200), proptest::collection::vec(output(), 0..4)).prop_map(
            |((e, base, parts, content_hash, t), n, state, outputs)| {
                Message::End(EpochEnd {
                    epoch: EpochId(e),
                    base,
                    parts,
                    content_hash,
                    cut_at: Time(t),
                    released: EpochId(n),
                    ingress: IngressSeq(n >> 1),
                    state,
                    outputs,
                })
            },
        )
    }

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            (any::<u64>(), bytes(64)).prop_map(|(g, fingerprint)| Message::Offer(Offer {
                vm: VmId::new("a-vm").unwrap(),
                active: member(3),
                generation: Generation(g),
                fingerprint
            })),
            epoch().prop_map(|staged| Message::Accept(Accept { replica: member(4), staged })),
            ".{0,40}".prop_map(Message::Refuse),
            (any::<u64>(), epoch(), epoch()).prop_map(|(n, e, f)| Message::Heartbeat(Heartbeat {
                from: member(5),
                generation: Generation(n),
                sent_at: Time(n),
                echo: f.map(|e| Time(e.0)),
                progress: n,
                epoch: e
            })),
            (any::<u64>(), epoch(), any::<u32>(), any::<bool>(), bytes(200)).prop_map(
                |(e, base, index, disks, payload)| {
                    let kind = if disks { PartKind::Disks } else { PartKind::Pages };
                    Message::Part(EpochPart { epoch: EpochId(e), base, index, kind, payload })
                }
            ),
            end(),
            (any::<u64>(), proptest::collection::vec((any::<u8>(), bytes(40)), 0..4))
                .prop_map(|(n, frames)| Message::Ingress(Ingress { first: IngressSeq(n >> 1), frames })),
            any::<u64>().prop_map(|n| Message::Deposed { generation: Generation(n), epoch: EpochId(n) }),
            any::<u64>().prop_map(|n| {
                Message::Yield(Yield { generation: Generation(n), epoch: EpochId(n), sent_at: Time(n) })
            }),
        ]
    }

    #[test]
    fn a_frame_number_that_cannot_be_counted_on_from_is_refused() {
        for n in [u64::MAX, limits::INGRESS_SEQ + 1] {
            let batch = Ingress { first: IngressSeq(n), frames: vec![(0, Bytes::from_static(b"x")); 2] };
            let refused = Message::decode(&Message::Ingress(batch).encode()).unwrap_err();
            assert_eq!(refused, DecodeError::Value { what: "ingress number", got: n });
        }
    }

    proptest! {
        #[test]
        fn messages_survive_the_wire(m in message()) {
            prop_assert_eq!(Message::decode(&m.encode()).unwrap(), m);
        }

        #[test]
        fn a_truncated_frame_is_refused(m in message(), cut in any::<prop::sample::Index>()) {
            let frame = m.encode();
            prop_assert!(Message::decode(&frame.slice(..cut.index(frame.len()))).is_err());
        }

        #[test]
        fn garbage_never_panics(data in bytes(400)) {
            let _ = Message::decode(&data);
        }
    }

    #[test]
    fn another_version_is_named() {
        let err = Message::decode(&Bytes::from_static(&[9, 4])).unwrap_err();
        assert_eq!(err, DecodeError::Version { got: 9, want: WIRE_VERSION });
    }
}
