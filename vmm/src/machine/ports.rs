//! The outside of a VM: where its frames and console output go.

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::devices::block::DiskPort;
use crate::devices::console::ConsoleLink;
use crate::devices::listener::SocketError;
use crate::devices::net::{NicPort, Tap, TapError, TapPort};
use crate::devices::serial::{SerialPort, StreamPort};
use crate::devices::vsock::{DirectPort, VsockLink};
use crate::spec::{SerialSpec, VmSpec};

/// Everything that leads out of a machine.
#[derive(Clone)]
pub struct MachinePorts {
    /// One per network card of the spec, in its order.
    pub net: Vec<NicPort>,
    /// Console output.
    pub serial: Arc<dyn SerialPort>,
    /// Of the socket device, if the spec has one.
    pub vsock: Option<VsockLink>,
    /// One per port of the paravirtual console.
    pub consoles: Vec<ConsoleLink>,
    /// Who is told what the guest writes to its disks, if anybody is.
    pub disks: Option<Arc<dyn DiskPort>>,
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
    /// A Unix socket of a device.
    #[error(transparent)]
    Socket(#[from] SocketError),
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
    /// The ports of a machine that has nothing but a console.
    pub fn none(serial: Arc<dyn SerialPort>) -> MachinePorts {
        MachinePorts { net: Vec::new(), serial, vsock: None, consoles: Vec::new(), disks: None }
    }

    /// The ports of an unprotected VM: frames go straight to the taps, output straight to the console.
    ///
    /// # Errors
    /// [`PortsError`] when a tap or the console's file cannot be opened.
    pub fn plain(spec: &VmSpec) -> Result<MachinePorts, PortsError> {
        let open = |card| Tap::open(card).map(Arc::new);
        let taps = spec.net.iter().map(open).collect::<Result<_, _>>()?;
        Self::on_taps(spec, taps)
    }

    /// As [`plain`](Self::plain), on taps that are open: one per network card of the spec, in its order.
    ///
    /// # Errors
    /// [`PortsError`] when the console's file or a socket of a device cannot be opened.
    pub fn on_taps(spec: &VmSpec, taps: Vec<Arc<Tap>>) -> Result<MachinePorts, PortsError> {
        let port = |tap: Arc<Tap>| NicPort { port: Arc::new(TapPort::new(Arc::clone(&tap))), tap };
        let vsock = |spec| VsockLink::bind(spec, Arc::new(DirectPort));
        Ok(MachinePorts {
            net: taps.into_iter().map(port).collect(),
            serial: Arc::new(open_console(&spec.serial)?),
            vsock: spec.devices.vsock.as_ref().map(vsock).transpose()?,
            consoles: spec.devices.consoles.iter().map(ConsoleLink::direct).collect::<Result<_, _>>()?,
            disks: None,
        })
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
