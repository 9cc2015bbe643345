//! The way out of the VM for what the guest says on a port.

use std::sync::Arc;

use super::Terminal;
use crate::devices::listener::SocketError;
use crate::devices::net::Transmit;
use crate::spec::ConsoleSpec;

/// What a port's output passes on its way to the terminal. Called from the device thread with the device locked: it must
/// not wait, and while the machine is paused no call comes.
pub trait ConsolePort: Send + Sync {
    /// Takes bytes from the guest, in order, and has the terminal show them when they may be seen. `Full`: nothing was
    /// taken, and nothing more is offered until `Machine::kick_console`.
    fn write(&self, bytes: &[u8]) -> Transmit;
}

/// What one port is attached to.
#[derive(Clone)]
pub struct ConsoleLink {
    /// Where the client is.
    pub terminal: Arc<Terminal>,
    /// What output passes before.
    pub port: Arc<dyn ConsolePort>,
}

impl ConsoleLink {
    /// Listens at the spec's socket; output goes straight to the terminal: an unprotected VM.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn direct(spec: &ConsoleSpec) -> Result<ConsoleLink, SocketError> {
        let terminal = Arc::new(Terminal::bind(&spec.socket)?);
        Ok(ConsoleLink { port: Arc::new(Direct(Arc::clone(&terminal))), terminal })
    }
}

impl std::fmt::Debug for ConsoleLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleLink").field("terminal", &self.terminal).finish_non_exhaustive()
    }
}

struct Direct(Arc<Terminal>);

impl ConsolePort for Direct {
    fn write(&self, bytes: &[u8]) -> Transmit {
        self.0.show(bytes);
        Transmit::Taken
    }
}
