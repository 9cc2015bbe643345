//! State of the socket device: none beyond its transport. Connections end with the process that holds their other ends,
//! and a guest that goes on elsewhere is told that they have.

use super::device::Vsock;

impl Vsock {
    /// The guest's earlier connections belong to another process, or to an earlier life of this one.
    pub(super) fn forget(&mut self) {
        self.clear();
        self.host.close_all();
    }
}
