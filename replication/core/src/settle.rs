//! Settling one swap with the arbiter when requests and replies may be lost, late or doubled.
//!
//! ```text
//!   new ──request──> Pending ──reply: applied, or a record that holds my op──> Applied
//!                      │ ^ └─reply: refused, or a record of another version────> Failed
//!                      └─┘ no reply: the same swap again, under the same op id
//! ```
//! A lost reply is never taken for a refusal: until the arbiter has said so, the swap may have been applied.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::OpId;
use crate::record::{Record, Refusal, Swap};
use crate::sabotage::{Sabotage, sabotaged};
use crate::time::Time;

/// What is sent to the arbiter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Ask for the record.
    Read,
    /// Change the record.
    Swap(Swap),
}

/// What the arbiter answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The record as it is, if there is one.
    Record(Option<Record>),
    /// The swap of this id is in the record.
    Applied {
        /// Which swap.
        op: OpId,
        /// The record now.
        record: Record,
    },
    /// The swap of this id is not, and as proposed never will be, in the record.
    Refused {
        /// Which swap.
        op: OpId,
        /// Why.
        refusal: Refusal,
        /// The record now, if there is one.
        record: Option<Record>,
    },
}

impl Reply {
    /// The record in the answer.
    #[must_use]
    pub fn record(&self) -> Option<&Record> {
        match self {
            Self::Record(record) | Self::Refused { record, .. } => record.as_ref(),
            Self::Applied { record, .. } => Some(record),
        }
    }
}

/// Where a proposal stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Not known yet.
    Pending,
    /// It is in the record.
    Applied(Record),
    /// It is not and will not be.
    Failed(Option<Record>),
}

/// A swap on its way.
#[derive(Debug)]
pub struct Proposal {
    swap: Swap,
    sent_at: Time,
}

impl Proposal {
    /// Starts a swap. Send [`Proposal::request`] now.
    #[must_use]
    pub fn new(swap: Swap, now: Time) -> Self {
        Self { swap, sent_at: now }
    }

    /// The request to send, and to send again.
    #[must_use]
    pub fn request(&self) -> Request {
        Request::Swap(self.swap.clone())
    }

    /// The swap.
    #[must_use]
    pub fn swap(&self) -> &Swap {
        &self.swap
    }

    /// Whether the swap must be sent again because nothing came back for `patience`.
    pub fn overdue(&mut self, now: Time, patience: Duration) -> bool {
        let overdue = now.since(self.sent_at) >= patience;
        if overdue {
            self.sent_at = now;
        }
        overdue
    }

    /// Whether this proposal, unanswered for `patience`, would be taken for failed: never, unless sabotaged.
    #[must_use]
    pub fn given_up(&self, now: Time, patience: Duration) -> bool {
        sabotaged(Sabotage::LostReplyIsFailure) && now.since(self.sent_at) >= patience
    }

    /// What a reply says about this swap. Replies about other operations leave it pending.
    #[must_use]
    pub fn settle(&self, reply: &Reply) -> Settled {
        let record = reply.record();
        match reply {
            _ if record.is_some_and(|r| r.holds(self.swap.op)) => {
                Settled::Applied(record.cloned().expect("checked above"))
            }
            Reply::Refused { op, record, .. } if *op == self.swap.op => Settled::Failed(record.clone()),
            _ if record.is_some_and(|r| r.version > self.swap.expected_version) => {
                Settled::Failed(record.cloned())
            }
            _ => Settled::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::EpochId;
    use crate::record::tests::{member, swap};
    use crate::record::{Change, LossPolicy, Verdict, decide};

    #[test]
    fn lost_reply_is_settled_by_reading() {
        let create = swap(member(1), 0, 1, Change::Create { policy: LossPolicy::Degrade });
        let Verdict::Apply(record) = decide(None, &create) else { panic!() };
        let mine = Proposal::new(create, Time(0));
        assert_eq!(mine.settle(&Reply::Record(None)), Settled::Pending);
        assert_eq!(mine.settle(&Reply::Record(Some(record.clone()))), Settled::Applied(record.clone()));

        let other = Proposal::new(swap(member(1), 1, 2, Change::Unlist { member: member(2) }), Time(0));
        assert_eq!(other.settle(&Reply::Record(Some(record.clone()))), Settled::Pending);
        let later = Record { version: 2, ..record };
        assert_eq!(other.settle(&Reply::Record(Some(later.clone()))), Settled::Failed(Some(later)));
    }

    #[test]
    fn a_reply_about_another_operation_settles_nothing() {
        let mine = Proposal::new(swap(member(1), 1, 7, Change::TakeOver { epoch: EpochId(1) }), Time(0));
        let op = OpId { count: 6, ..mine.swap().op };
        let reply = Reply::Refused { op, refusal: Refusal::Changed, record: None };
        assert_eq!(mine.settle(&reply), Settled::Pending);
    }
}
