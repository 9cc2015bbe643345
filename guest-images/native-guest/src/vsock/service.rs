//! What is offered to the host's programs, and what is asked of them.

use super::device::VsockDevice;
use super::packet::{Kind, Packet};
use super::stream::{Purpose, State, Stream};
use crate::machine::Machine;
use crate::serial;
use crate::virtio::{Bus, DeviceError};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use native_guest::work::VsockWork;
use resp_kv::{Engine, Session};

/// Connections at a time; more are refused.
const MAX_STREAMS: usize = 128;

/// Packets taken in per turn.
const TURN_PACKETS: usize = 64;

/// Output of a connection at which its input waits.
const OUTPUT_BYTES: usize = 64 << 10;

/// First port of the guest's own connections.
const OWN_PORT: u32 = 1024;

const QUESTION: &[u8] = b"hello from the guest\n";

/// All connections.
pub(crate) struct VsockService {
    device: VsockDevice,
    work: Vec<VsockWork>,
    streams: Vec<Stream>,
    /// Refusals that are owed.
    refusals: VecDeque<Packet>,
}

impl VsockService {
    /// Opens the device, listens, and connects.
    pub(crate) fn new(bus: &mut Bus, work: &[VsockWork]) -> Result<Self, DeviceError> {
        let mut service = Self {
            device: VsockDevice::new(bus)?,
            work: work.to_vec(),
            streams: Vec::new(),
            refusals: VecDeque::new(),
        };
        let own = work.iter().filter_map(|work| match work {
            VsockWork::Connect(port) => Some(*port),
            _ => None,
        });
        for (own_port, peer_port) in (OWN_PORT..).zip(own) {
            let mut stream = Stream::new(own_port, peer_port, Purpose::Ask, Kind::Request);
            stream.output.extend_from_slice(QUESTION);
            service.streams.push(stream);
        }
        service.say_listening();
        Ok(service)
    }

    fn say_listening(&self) {
        for work in &self.work {
            if let VsockWork::Echo(port) | VsockWork::Resp(port) = work {
                serial::line(format_args!("vsock: listening on {port}"));
            }
        }
    }

    /// Moves packets and data. Whether any moved.
    pub(crate) fn turn(&mut self, engine: &mut Engine<Machine>) -> bool {
        let mut moved = false;
        if self.device.was_reset() {
            self.streams.clear();
            self.refusals.clear();
            serial::line(format_args!("vsock: reset"));
            self.say_listening();
            moved = true;
        }
        for _ in 0..TURN_PACKETS {
            let Some((packet, data)) = self.device.receive() else { break };
            self.take(packet, &data);
            moved = true;
        }
        self.streams.iter_mut().for_each(|stream| serve(stream, engine));
        self.send() || moved
    }

    fn take(&mut self, packet: Packet, data: &[u8]) {
        let of =
            |stream: &&mut Stream| (stream.own_port, stream.peer_port) == (packet.own_port, packet.peer_port);
        if let Some(stream) = self.streams.iter_mut().find(of) {
            return stream.take(packet, data);
        }
        match (packet.kind, self.purpose(packet.own_port)) {
            (Kind::Reset, _) => {}
            (Kind::Request, Some(purpose)) if self.streams.len() < MAX_STREAMS => {
                let mut stream = Stream::new(packet.own_port, packet.peer_port, purpose, Kind::Response);
                stream.take(packet, data);
                self.streams.push(stream);
            }
            _ => self.refusals.push_back(Packet {
                kind: Kind::Reset,
                flags: 0,
                room: 0,
                passed_on: 0,
                ..packet
            }),
        }
    }

    /// What a connection to `port` is for, if anything listens there.
    fn purpose(&self, port: u32) -> Option<Purpose> {
        self.work.iter().find_map(|work| match work {
            VsockWork::Echo(at) if *at == port => Some(Purpose::Echo),
            VsockWork::Resp(at) if *at == port => Some(Purpose::Resp(Box::new(Session::new()))),
            _ => None,
        })
    }

    /// Sends what there is room for. Whether it sent anything.
    fn send(&mut self) -> bool {
        let mut sent = false;
        while !self.refusals.is_empty() && self.device.has_room() {
            let Some(packet) = self.refusals.pop_front() else { break };
            self.device.send(packet, &[]);
            sent = true;
        }
        for stream in &mut self.streams {
            while self.device.has_room() {
                let Some((packet, take)) = stream.next_packet() else { break };
                self.device.send(packet, &stream.output[..take]);
                stream.output.drain(..take);
                sent = true;
            }
        }
        self.streams.retain(|stream| stream.state != State::Closed);
        sent
    }

    /// Switches interrupts on for a sleep. Whether sleeping is right.
    pub(crate) fn prepare_sleep(&mut self) -> bool {
        self.device.prepare_sleep()
    }

    /// Switches interrupts off again.
    pub(crate) fn end_sleep(&mut self) {
        self.device.end_sleep();
    }
}

/// Makes use of a connection's input.
fn serve(stream: &mut Stream, engine: &mut Engine<Machine>) {
    match &mut stream.purpose {
        Purpose::Echo if stream.output.len() < OUTPUT_BYTES => stream.output.append(&mut stream.input),
        Purpose::Echo => {}
        Purpose::Resp(session) => {
            while stream.output.len() < OUTPUT_BYTES {
                let fed = session.feed(&stream.input);
                stream.input.drain(..fed);
                let progress = session.advance(engine);
                stream.output.extend_from_slice(session.output());
                session.mark_sent(session.output().len());
                if fed == 0 && !progress {
                    break;
                }
            }
            if session.is_finished() && stream.state == State::Open {
                stream.state = State::Ending;
            }
        }
        Purpose::Ask => answered(stream),
    }
}

/// Looks whether the line has come back.
fn answered(stream: &mut Stream) {
    if stream.state == State::Closed {
        serial::line(format_args!("vsock: FAILED: the host refused port {}", stream.peer_port));
    }
    if stream.input.len() >= QUESTION.len() && stream.state != State::Closed {
        let same = stream.input.starts_with(QUESTION);
        serial::line(format_args!("vsock: {}", if same { "ok" } else { "FAILED: another line came back" }));
        stream.state = State::Ending;
        stream.input.clear();
    }
}
