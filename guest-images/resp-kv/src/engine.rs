//! The engine: a store, the machine beneath it, and one command at a time.

use crate::commands;
use crate::host::Host;
use crate::resp::{Command, Replies};
use crate::store::Store;
use core::ops::ControlFlow;

/// What all connections of one server share.
#[derive(Debug)]
pub struct Engine<H> {
    pub(crate) store: Store,
    pub(crate) host: H,
    pub(crate) commands_executed: u64,
    pub(crate) started_ns: u64,
}

impl<H: Host> Engine<H> {
    /// An engine with an empty store that charges at most `store_limit_bytes` for its entries.
    pub fn new(mut host: H, store_limit_bytes: usize) -> Self {
        let started_ns = host.clocks().mono_ns;
        Self { store: Store::new(store_limit_bytes), host, commands_executed: 0, started_ns }
    }

    /// The entries.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The machine beneath.
    #[must_use]
    pub fn host(&self) -> &H {
        &self.host
    }

    /// The machine beneath, for whoever drives it between commands.
    pub fn host_mut(&mut self) -> &mut H {
        &mut self.host
    }

    /// Executes one command and appends its reply. Breaks if the connection is to be closed after it.
    pub fn execute(&mut self, command: &Command<'_>, replies: &mut Replies) -> ControlFlow<()> {
        self.commands_executed += 1;
        commands::dispatch(self, command, replies)
    }
}
