//! Nested lab: whole Linux hosts with working KVM, in emulated machines, joined by a private network.
//!
//! A [`LabHost`] is one QEMU process that emulates a machine with AMD-V in software and boots Debian's own kernel with the
//! lab agent as its init. Killing the process is a real host death: kernel, clock and NICs are gone at once. A [`LabNet`]
//! is the network between hosts, in a namespace of the calling thread; it vanishes with it. [`images`] fetches the
//! kernel and builds what hosts and their guests boot from.
//!
//! ```no_run
//! use mycelium_lab::{LabHost, LabNet, LabNetConfig, PrivateNamespace, images};
//! # fn main() -> Result<(), mycelium_lab::LabError> {
//! let namespace = PrivateNamespace::enter()?;
//! let lab_net = LabNet::create(&namespace, &LabNetConfig::default())?;
//! let kernel = images::Kernel::ensure(&images::Cache::open()?)?;
//! let agent = images::static_binary("lab-agent", "lab-agent")?;
//! let host = LabHost::start(&kernel, &agent, lab_net.host_config(0, "/tmp/run".as_ref()))?;
//! let output = host.exec(&["/some/program", "--flag"])?;
//! host.kill();
//! # Ok(()) }
//! ```

pub mod error;
pub mod host;
pub mod images;
pub mod limits;
pub mod net;
pub mod requirements;
mod tool;

pub use error::LabError;
pub use host::{BootReport, HostConfig, HostFile, LabHost, Nic, NicBackend, Output, Process};
pub use lab_agent::plan::{BridgePlan, Cidr};
pub use lab_agent::protocol::{ExitStatus, Netem, Stream};
pub use net::{LabNet, LabNetConfig, PrivateNamespace, Wire};
