//! PCI as the guest sees it: one bus, configuration through ports 0xCF8/0xCFC, memory BARs, MSI-X.

mod config;
mod host;
mod msix;

pub(crate) use config::{CONFIG_BYTES, ConfigSpace, Identity};
pub(crate) use host::{PciFunction, PciHost};
pub(crate) use msix::{MSIX_CAPABILITY_ID, Msix, MsixState, msix_capability};
