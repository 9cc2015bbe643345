//! Taking orders, one after the other; only a ping, which waits for another host, runs beside them.

use std::fs::{self, File};
use std::thread;

use lab_agent::frame::{FrameError, read_frame};
use lab_agent::protocol::{Answer, Message, Order, Refusal, Request};

use crate::netlink::Netlink;
use crate::outbox::Outbox;
use crate::processes::Processes;
use crate::{files, kvm, netdev, ping};

/// What an order brought, with the bytes that travel beside the answer.
type Outcome = Result<(Answer, Vec<u8>), Refusal>;

/// Serves until the channel closes or the host is told to power off.
pub(crate) fn serve(mut channel: File) -> Result<(), Refusal> {
    ping::start_echo()?;
    let refuse = |error: FrameError| Refusal::new("control channel", error);
    let outbox = Outbox::new(channel.try_clone().map_err(|error| Refusal::new("control channel", error))?);
    outbox.send(&ready_message(), &[]).map_err(refuse)?;
    println!("lab-agent: ready");
    let mut hands = Hands { processes: Processes::new(outbox.clone()), netlink: Netlink::open()? };
    loop {
        let (request, blob) = match read_frame::<Request>(&mut channel) {
            Ok(frame) => frame,
            Err(FrameError::Closed) => return Ok(()),
            Err(error) => return Err(refuse(error)),
        };
        match request.order {
            Order::PowerOff => return outbox.reply(request.id, done(())).map_err(refuse),
            Order::Ping { to, timeout_ms } => {
                let outbox = outbox.clone();
                thread::spawn(move || {
                    let outcome = ping::ping(to, timeout_ms).map(|answer| (answer, Vec::new()));
                    // Nobody is left to tell once the channel is gone.
                    let _ = outbox.reply(request.id, outcome);
                });
            }
            order => outbox.reply(request.id, hands.carry_out(order, &blob)).map_err(refuse)?,
        }
    }
}

fn ready_message() -> Message {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = uptime.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or_default();
    let uptime = std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default();
    Message::Ready { kernel, uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX) }
}

/// What orders work with.
#[derive(Debug)]
struct Hands {
    processes: Processes,
    netlink: Netlink,
}

impl Hands {
    fn carry_out(&mut self, order: Order, blob: &[u8]) -> Outcome {
        match order {
            Order::Spawn(order) => {
                self.processes.spawn(&order).map(|pid| (Answer::Started { pid }, Vec::new()))
            }
            Order::Signal { process, signal } => done(self.processes.signal(process, signal)?),
            Order::ReadFile { path, offset } => files::read_part(&path, offset),
            Order::WriteFile { path, offset, mode } => done(files::write_part(&path, offset, mode, blob)?),
            Order::Netem { nic, shape } => done(self.netlink.set_netem(netdev::index_of(&nic)?, shape)?),
            Order::Link { nic, up } => done(self.netlink.set_up(netdev::index_of(&nic)?, up)?),
            Order::ProbeKvm => kvm::probe().map(|answer| (answer, Vec::new())),
            Order::Ping { .. } | Order::PowerOff => Err(Refusal::new("order", "taken by the serving loop")),
        }
    }
}

fn done((): ()) -> Outcome {
    Ok((Answer::Done, Vec::new()))
}
