//! What daemons ask one another.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::disks::{DiskAsked, Mark};

/// A request between daemons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Hold a replica of a VM the asker runs. Asked again, the same replica answers.
    StartPassive {
        vm: String,
        /// TOML.
        spec: String,
        on_loss: String,
    },
    /// The same of a VM with writable disks, of which the replica's node has images of its own. A daemon that does not know
    /// this would open the paths of the asker's.
    StartPassiveWithDisks {
        vm: String,
        spec: String,
        on_loss: String,
        mark: Mark,
        /// The writable ones, in the order of the spec.
        disks: Vec<DiskAsked>,
    },
    /// The asker does not need the replica any more.
    StopPassive { vm: String },
    /// Let the asker use the passive that a pod holds here.
    UsePassive { vm: String },
    /// What of a VM is here?
    Holds { vm: String },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    /// How to reach the passive: KEY@ADDRESS,ADDRESS.
    Ticket(String),
    Done,
    Holds(Holding),
}

/// What a node has of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Holding {
    Nothing,
    /// A process that is just being started, or does not answer.
    Starting,
    Active,
    /// Of that incarnation, as `VmInfo` has it: only one that the record lists can take over.
    Passive(String),
}

/// Daemons of one network may be of neighbouring versions: JSON says what it does not know.
pub(crate) fn encode<T: Serialize>(message: &T) -> Bytes {
    serde_json::to_vec(message).unwrap_or_default().into()
}

pub(crate) fn decode<'m, T: Deserialize<'m>>(bytes: &'m [u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("the other daemon is of another version: {error}"))
}

/// Entry point for fuzzing: a request and an answer of another daemon.
#[cfg(feature = "fuzzing")]
pub fn fuzz_peer(data: &[u8]) {
    if let Ok(ask) = decode::<Ask>(data) {
        assert_eq!(decode::<Ask>(&encode(&ask)), Ok(ask));
    }
    if let Ok(told) = decode::<Told>(data) {
        assert_eq!(decode::<Told>(&encode(&told)), Ok(told));
    }
}

/// Entry point for fuzzing: what daemons say to each other.
#[cfg(feature = "fuzzing")]
pub fn seeds_peer() -> Vec<Vec<u8>> {
    let vm = || "shop".to_owned();
    let asked =
        Ask::StartPassive { vm: vm(), spec: "name = \"shop\"".to_owned(), on_loss: "halt".to_owned() };
    let told = [Told::Ticket("ab@10.0.0.1:1".to_owned()), Told::Done, Told::Holds(Holding::Passive(vm()))];
    let disks = vec![DiskAsked { serial: "data".to_owned(), bytes: 1 << 30 }];
    let with_disks = Ask::StartPassiveWithDisks {
        vm: vm(),
        spec: "name = \"shop\"".to_owned(),
        on_loss: "halt".to_owned(),
        mark: Mark::default(),
        disks,
    };
    let asked = [
        asked,
        with_disks,
        Ask::StopPassive { vm: vm() },
        Ask::UsePassive { vm: vm() },
        Ask::Holds { vm: vm() },
    ];
    asked.iter().map(encode).chain(told.iter().map(encode)).map(Vec::from).collect()
}
