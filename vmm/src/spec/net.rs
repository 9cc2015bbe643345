//! Network cards as the spec file has them, and the checks that make them specs.

use serde::{Deserialize, Serialize};

use super::slots::check_slot;
use super::written::check_rate;
use super::{MacAddress, SpecError, parse::field};
use crate::devices::net::inherited;
use crate::limits::{NIC_PAIRS_MAX, NICS_MAX};

/// One network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetSpec {
    /// Name of the tap on this node, or `fd:N`: an open descriptor that this process inherited.
    pub tap: String,
    /// Address of the card, the same on every node.
    pub mac: MacAddress,
    /// Whether guest and host may leave checksums and the cutting of large segments to each other, if the tap can.
    pub offload: bool,
    /// Pairs of queues, at least one; the same on every node.
    pub queues: u16,
    /// Most frames per second and direction, with a second's worth of burst; one that is still to be cut counts once.
    pub packets_per_s: Option<u64>,
    /// Most bytes per second and direction, with a second's worth of burst.
    pub bytes_per_s: Option<u64>,
    /// Whether the guest can be asked to let go of it. A guest names cards in such slots by another scheme (`ens5`).
    pub removable: bool,
    /// PCI slot; the lowest that is free if `None`.
    pub slot: Option<u16>,
}

impl NetSpec {
    /// A card with what is not said as it is by default.
    pub fn plain(tap: &str, mac: MacAddress) -> NetSpec {
        let tap = tap.to_owned();
        NetSpec {
            tap,
            mac,
            offload: true,
            queues: 1,
            packets_per_s: None,
            bytes_per_s: None,
            removable: false,
            slot: None,
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenNet {
    tap: String,
    mac: String,
    offload: Option<bool>,
    queues: Option<i64>,
    packets_per_s: Option<i64>,
    bytes_per_s: Option<i64>,
    removable: Option<bool>,
    slot: Option<i64>,
}

/// Checks the cards of a machine.
///
/// # Errors
/// [`SpecError::Field`] or [`SpecError::Tap`].
pub(super) fn check_net(written: &[WrittenNet]) -> Result<Vec<NetSpec>, SpecError> {
    if written.len() > NICS_MAX {
        let reason = format!("cards are more than {NICS_MAX}");
        return Err(field("net", written.len(), reason, "remove some"));
    }
    let mut cards: Vec<NetSpec> = Vec::with_capacity(written.len());
    for written in written {
        let card = written.check()?;
        if cards.iter().any(|other| other.mac == card.mac) {
            return Err(field("net.mac", &written.mac, "is given to two cards", "give each its own"));
        }
        if cards.iter().any(|other| other.tap == card.tap) {
            return Err(field("net.tap", &written.tap, "is given to two cards", "give each its own"));
        }
        cards.push(card);
    }
    Ok(cards)
}

impl WrittenNet {
    /// As it would be written.
    pub(super) fn of(card: &NetSpec) -> WrittenNet {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        WrittenNet {
            tap: card.tap.clone(),
            mac: card.mac.to_string(),
            offload: Some(card.offload),
            queues: Some(card.queues.into()),
            packets_per_s: card.packets_per_s.map(number),
            bytes_per_s: card.bytes_per_s.map(number),
            removable: card.removable.then_some(true),
            slot: card.slot.map(i64::from),
        }
    }

    pub(super) fn check(&self) -> Result<NetSpec, SpecError> {
        let remedy = "a locally administered one begins with 02:";
        let mac = self.mac.parse().map_err(|reason: String| field("net.mac", &self.mac, reason, remedy))?;
        let queues = self.check_queues()?;
        if let Some(number) = inherited::number(&self.tap) {
            // Opened again when the machine is built; by then the mistake would be further from its line.
            inherited::check(number).map_err(SpecError::Tap)?;
        }
        Ok(NetSpec {
            tap: self.tap.clone(),
            mac,
            offload: self.offload.unwrap_or(true),
            queues,
            packets_per_s: check_rate("net.packets_per_s", self.packets_per_s)?,
            bytes_per_s: check_rate("net.bytes_per_s", self.bytes_per_s)?,
            removable: self.removable.unwrap_or(false),
            slot: check_slot("net.slot", self.slot)?,
        })
    }

    fn check_queues(&self) -> Result<u16, SpecError> {
        let said = self.queues.unwrap_or(1);
        let refuse = |reason: String, remedy| Err(field("net.queues", said, reason, remedy));
        match u16::try_from(said) {
            Ok(2..) if inherited::number(&self.tap).is_some() => {
                let reason = "is more than an inherited tap has, of which one queue is passed".to_owned();
                refuse(reason, "leave it out, or name the tap")
            }
            Ok(queues @ 1..=NIC_PAIRS_MAX) => Ok(queues),
            _ => refuse(format!("is not between 1 and {NIC_PAIRS_MAX}"), "one per vCPU is enough"),
        }
    }
}
