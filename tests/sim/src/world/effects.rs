//! Carrying out what processes do: sending, asking, reporting, ending.

use bytes::Bytes;
use mycelium_ram_core::Member;

use super::{Conn, Deferred, Event, Pid, Role, World};
use crate::clock::{MS, US};
use crate::effect::{ConnId, Effect, Frame, Input, Point, Report};
use crate::guest::extend;
use crate::net::Way;

impl World {
    /// Carries effects out in order. A fault may strike at a [`Point`] among them: a dead process does nothing more, a
    /// stopped one does the rest when it goes on.
    pub(super) fn apply(&mut self, pid: Pid, effects: Vec<Effect>) {
        let mut rest = effects.into_iter();
        while let Some(effect) = rest.next() {
            self.carry_out(pid, effect);
            let Some(proc) = self.procs.get_mut(&pid) else { return };
            if proc.stalled {
                proc.deferred.push(Deferred::Effects(rest.collect()));
                return;
            }
        }
    }

    fn carry_out(&mut self, pid: Pid, effect: Effect) {
        match effect {
            Effect::After(delay, timer) => self.after(delay, Event::Input(pid, Input::Timer(timer))),
            Effect::Open(conn, member) => self.open(pid, conn, member),
            Effect::Bundle(conn, frame) => self.send_bundle(pid, conn, frame),
            Effect::Close(conn) => self.conn_dies(conn),
            Effect::Datagram(to, frame) => self.send_datagram(pid, to, frame),
            Effect::Ask(request) => self.ask_arbiter(pid, request),
            Effect::Emit(frame) => self.emit(pid, frame),
            Effect::Point(point) => self.reached(pid, point),
            Effect::Report(report) => self.reported(pid, report),
            Effect::Exit(why) => {
                let back = self.rng.between((20, 100)) * MS;
                self.end_process(pid, true, back, &why);
            }
        }
    }

    fn node_of(&self, pid: Pid) -> Option<usize> {
        self.procs.get(&pid).map(|p| p.node)
    }

    fn way(&self, from: Pid, to: Pid) -> Option<Way> {
        Some(Way::Nodes(self.node_of(from)?, self.node_of(to)?))
    }

    fn open(&mut self, pid: Pid, conn: ConnId, member: Member) {
        if let Some(other) = self.pids.get(&member).copied().filter(|p| self.procs.contains_key(p)) {
            self.conns.insert(conn, Conn { ends: [pid, other] });
        } else {
            self.after(MS, Event::Input(pid, Input::Closed(conn)));
        }
    }

    /// A reliable message: loss only makes it late.
    fn send_bundle(&mut self, pid: Pid, conn: ConnId, frame: Bytes) {
        let Some(ends) = self.conns.get(&conn).map(|c| c.ends) else { return };
        let to = if ends[0] == pid { ends[1] } else { ends[0] };
        let Some(way) = self.way(pid, to) else { return };
        let mut delay = self.scenario.paths.delay(&mut self.rng);
        while self.rng.chance(self.scenario.paths.loss_pm) {
            delay += self.scenario.paths.round_trip() + self.rng.below(5 * MS);
        }
        self.after(delay, Event::Bundle { conn, way, to, frame });
    }

    fn send_datagram(&mut self, pid: Pid, member: Member, frame: Bytes) {
        let Some(to) = self.pids.get(&member).copied() else { return };
        let Some(way) = self.way(pid, to) else { return };
        let copies = 1 + u64::from(self.rng.chance(self.scenario.paths.double_pm));
        for _ in 0..copies {
            if self.cuts.passes(way) && !self.rng.chance(self.scenario.paths.loss_pm) {
                let delay = self.scenario.paths.delay(&mut self.rng);
                self.after(delay, Event::Datagram { way, to, frame: frame.clone() });
            }
        }
    }

    /// The end of a path between nodes.
    pub(super) fn arrive(&mut self, event: Event) {
        match event {
            Event::Bundle { conn, way, to, frame } => {
                if !self.conns.contains_key(&conn) {
                    return;
                }
                if self.cuts.passes(way) {
                    self.deliver(to, Input::Bundle(conn, frame));
                } else {
                    self.parked.push(Event::Bundle { conn, way, to, frame });
                }
            }
            Event::Datagram { way, to, frame } if self.cuts.passes(way) => {
                self.deliver(to, Input::Datagram(frame));
            }
            _ => {}
        }
    }

    /// Reliable messages that waited at a cut go on where the cut is mended.
    pub(super) fn unpark(&mut self) {
        for event in std::mem::take(&mut self.parked) {
            let delay = self.scenario.paths.delay(&mut self.rng);
            self.after(delay, event);
        }
    }

    pub(super) fn conn_dies(&mut self, conn: ConnId) {
        let Some(gone) = self.conns.remove(&conn) else { return };
        for end in gone.ends {
            let delay = self.rng.below(2 * MS);
            self.after(delay, Event::Input(end, Input::Closed(conn)));
        }
    }

    fn emit(&mut self, pid: Pid, frame: Frame) {
        let Some(proc) = self.procs.get(&pid) else { return };
        let (node, member) = (proc.node, proc.process.member);
        self.witness.emitted(self.now, member, frame);
        if let Frame::Answer(answer) = frame {
            self.stats.outputs += 1;
            self.trace.fold(answer.history);
        }
        self.note(|| format!("process {pid} lets out {frame:?}"));
        if self.cuts.passes(Way::Clients(node)) {
            let wire = self.rng.between((10 * US, 40 * US));
            self.after(wire, Event::AtSwitch { node, frame });
        }
    }

    fn reported(&mut self, pid: Pid, report: Report) {
        let Some(proc) = self.procs.get(&pid) else { return };
        let member = proc.process.member;
        match report {
            Report::History(before, entry) => {
                self.witness.history.insert(extend(before, &entry), (before, entry));
                return;
            }
            Report::Sealed(epoch) => {
                self.stats.epochs += 1;
                self.note(|| format!("process {pid} sealed {epoch}"));
                return;
            }
            Report::Resumed(epoch) => {
                self.stats.resumed += 1;
                self.witness.resumed.push((self.now, member, epoch));
            }
            Report::HandedOver => self.stats.handed_over += 1,
            Report::Broken(ref why) => self.witness.broken.push((self.now, member, why.clone())),
            Report::Unbounded(ref what) => self.witness.unbounded.push((self.now, member, what.clone())),
            Report::Status(_) | Report::Remark(_) => {}
        }
        self.note(|| format!("process {pid}: {report:?}"));
    }

    /// A fault point: noted in a trace where it says something that no other line says.
    pub(super) fn note_point(&mut self, pid: Pid, point: Point) {
        let telling = !matches!(
            point,
            Point::AckSent | Point::PartStaged | Point::PartSent | Point::AmidRelease | Point::InCut
        );
        if telling {
            let role = self.procs.get(&pid).map(|p| matches!(p.process.role, Role::Active(_)));
            let role = if role == Some(true) { "active" } else { "passive" };
            self.note(|| format!("process {pid} ({role}) at {point:?}"));
        }
    }
}
