//! Clients: one request at a time, asked again after the 200 ms a stock TCP waits.

use super::{Event, Phase, World};
use crate::clock::{MS, US};
use crate::guest::{Answer, Request};

const FIRST_PATIENCE: u64 = 200 * MS;
const LONGEST_PATIENCE: u64 = 800 * MS;

/// A client.
#[derive(Debug, Default)]
pub(super) struct Client {
    seq: u64,
    pub(super) waits_for: Option<Request>,
    patience: u64,
    /// Answers to requests first sent after everything was healed.
    pub(super) answered_since_heal: u64,
}

impl World {
    pub(super) fn client_sends(&mut self, id: u8) {
        if matches!(self.phase, Phase::Draining { .. } | Phase::Resting | Phase::Over) {
            return;
        }
        let word = self.rng.word();
        let client = &mut self.clients[usize::from(id)];
        client.seq += 1;
        client.patience = FIRST_PATIENCE;
        let request = Request { client: id, seq: client.seq, word };
        client.waits_for = Some(request);
        self.client_asks(request);
    }

    fn client_asks(&mut self, request: Request) {
        let wire = self.rng.between((10 * US, 40 * US));
        self.after(wire, Event::ToGuest(request));
        let patience = self.clients[usize::from(request.client)].patience;
        self.after(patience, Event::ClientAsksAgain(request.client, request.seq));
    }

    pub(super) fn client_asks_again(&mut self, id: u8, seq: u64) {
        let client = &mut self.clients[usize::from(id)];
        let Some(request) = client.waits_for.filter(|r| r.seq == seq) else { return };
        client.patience = (client.patience * 2).min(LONGEST_PATIENCE);
        self.note(|| format!("client {id} asks again for {seq}"));
        self.client_asks(request);
    }

    pub(super) fn answered(&mut self, answer: Answer) {
        let client = &mut self.clients[usize::from(answer.client)];
        if client.waits_for.is_none_or(|r| r.seq != answer.seq) {
            return;
        }
        client.waits_for = None;
        let settling = matches!(self.phase, Phase::Settling { .. });
        client.answered_since_heal += u64::from(settling);
        let think = if settling { (10 * MS, 30 * MS) } else { self.scenario.think };
        let think = self.rng.between(think);
        self.after(think, Event::ClientSends(answer.client));
    }
}
