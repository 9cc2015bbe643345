//! Real guests on real KVM.

mod devices;
mod disks;
mod epochs;
mod events;
mod life;
mod native;
mod specs;
mod support;
