//! The network between the harness and one guest: a tap in a namespace of its own, laid anew for each VM.
//!
//! The namespace goes with the last process in it, and the taps with it, however this program ends.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use mycelium_lab::PrivateNamespace;

const TAP: &str = "tap0";
const HOST: &str = "10.99.0.1";
const GUEST: &str = "10.99.0.2";
const PORT: u16 = 6379;
const MAC: &str = "02:00:00:00:00:63";
/// The same on each new tap: a restored guest remembers it.
const HOST_MAC: &str = "02:00:00:00:00:01";

/// Moves this program into a namespace of its own. To be called once, before the first wire and before any thread.
pub fn enter_namespace() -> Result<()> {
    PrivateNamespace::enter().context("cannot make a network namespace for the guests")?;
    Ok(())
}

/// A tap that is there as long as this is.
#[derive(Debug)]
pub struct Wire(());

impl Wire {
    /// Makes the tap, with this host at its other end.
    pub fn lay() -> Result<Self> {
        ip(&format!("tuntap add {TAP} mode tap"))?;
        let wire = Self(());
        ip(&format!("link set {TAP} address {HOST_MAC}"))?;
        ip(&format!("addr add {HOST}/24 dev {TAP}"))?;
        ip(&format!("link set {TAP} up"))?;
        // Resolving the address again and again would be measured, too, in steps of a second.
        ip(&format!("neigh replace {GUEST} lladdr {MAC} dev {TAP} nud permanent"))?;
        Ok(wire)
    }

    /// The tap's name.
    pub fn tap(&self) -> &'static str {
        TAP
    }

    /// The guest's address on it.
    pub fn mac(&self) -> &'static str {
        MAC
    }

    /// What the guest's command line says about its network.
    pub fn guest_words(&self) -> String {
        format!("ip={GUEST}/24 gw={HOST}")
    }

    /// Where the guest serves.
    pub fn server(&self) -> Result<SocketAddr> {
        Ok(SocketAddr::new(GUEST.parse()?, PORT))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Err(error) = ip(&format!("link del {TAP}")) {
            eprintln!("{error:#}");
        }
    }
}

/// Runs `ip` with a command line of its own.
pub fn ip(line: &str) -> Result<()> {
    let output = Command::new("ip").args(line.split_whitespace()).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start `ip {line}` (package iproute2)"))?;
    if !output.status.success() {
        bail!("`ip {line}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
