//! The one writer of the control channel: replies, output and exits of many threads, each frame whole.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use lab_agent::frame::{FrameError, write_frame};
use lab_agent::protocol::{Answer, Message, Refusal};

/// Sending end shared by all threads of the agent.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    channel: Arc<Mutex<File>>,
}

impl Outbox {
    pub(crate) fn new(channel: File) -> Self {
        Self { channel: Arc::new(Mutex::new(channel)) }
    }

    /// Sends a frame. With the other end gone nobody is left to tell, so callers only stop.
    pub(crate) fn send(&self, message: &Message, blob: &[u8]) -> Result<(), FrameError> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        write_frame(&mut *channel, message, blob)
    }

    pub(crate) fn reply(
        &self,
        id: u64,
        outcome: Result<(Answer, Vec<u8>), Refusal>,
    ) -> Result<(), FrameError> {
        match outcome {
            Ok((answer, blob)) => self.send(&Message::Reply { id, outcome: Ok(answer) }, &blob),
            Err(refusal) => self.send(&Message::Reply { id, outcome: Err(refusal) }, &[]),
        }
    }
}
