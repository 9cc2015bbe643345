//! Who is a member and where it listens, as this node knows it: from the state once there is one, before that from the answer
//! that let it in, or from its folder.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{PoisonError, RwLock};

use mycelium_ram_core::NodeId;

/// Members and their addresses.
#[derive(Debug, Default)]
pub(crate) struct Book(RwLock<BTreeMap<NodeId, Vec<SocketAddr>>>);

impl Book {
    /// Replaces all.
    pub(crate) fn set(&self, members: impl Iterator<Item = (NodeId, Vec<SocketAddr>)>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = members.collect();
    }

    pub(crate) fn holds(&self, node: NodeId) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(&node)
    }

    pub(crate) fn addrs(&self, node: NodeId) -> Option<Vec<SocketAddr>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }

    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }
}
