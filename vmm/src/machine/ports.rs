//! The outside of a VM: where its frames and console output go.

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::devices::net::{NicPort, Tap, TapError, TapPort};
use crate::devices::serial::{SerialPort, StreamPort};
use crate::spec::{SerialSpec, VmSpec};

/// Everything that leads out of a machine.
#[derive(Clone)]
pub struct MachinePorts {
    /// One per network card of the spec, in its order.
    pub net: Vec<NicPort>,
    /// Console output.
    pub serial: Arc<dyn SerialPort>,
}

impl std::fmt::Debug for MachinePorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MachinePorts").field("net", &self.net).finish_non_exhaustive()
    }
}

/// Why the ports of a spec cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// A tap.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The console's file.
    #[error("cannot open serial = {}: {source}; check that its folder exists and can be written", path.display())]
    Serial {
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl MachinePorts {
    /// The ports of an unprotected VM: frames go straight to the taps, output straight to the console.
    ///
    /// # Errors
    /// [`PortsError`] when a tap or the console's file cannot be opened.
    pub fn plain(spec: &VmSpec) -> Result<MachinePorts, PortsError> {
        let taps = spec.net.iter().map(|card| Tap::open(&card.tap)).collect::<Result<_, _>>()?;
        Self::on_taps(spec, taps)
    }

    /// As [`plain`](Self::plain), on taps that are open: one per network card of the spec, in its order.
    ///
    /// # Errors
    /// [`PortsError::Serial`] when the console's file cannot be opened.
    pub fn on_taps(spec: &VmSpec, taps: Vec<Tap>) -> Result<MachinePorts, PortsError> {
        let port = |tap: Tap| {
            let tap = Arc::new(tap);
            NicPort { port: Arc::new(TapPort::new(Arc::clone(&tap))), tap }
        };
        let serial = Arc::new(open_console(&spec.serial)?);
        Ok(MachinePorts { net: taps.into_iter().map(port).collect(), serial })
    }
}

/// A port to the console a spec names.
///
/// # Errors
/// [`PortsError::Serial`].
pub(super) fn open_console(spec: &SerialSpec) -> Result<StreamPort, PortsError> {
    match spec {
        SerialSpec::Unsaid | SerialSpec::Stdio => Ok(StreamPort::new(io::stdout())),
        SerialSpec::Null => Ok(StreamPort::new(io::sink())),
        SerialSpec::File(path) => match OpenOptions::new().create(true).append(true).open(path) {
            Ok(file) => Ok(StreamPort::new(file)),
            Err(source) => Err(PortsError::Serial { path: path.clone(), source }),
        },
    }
}
