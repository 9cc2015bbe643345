//! Real guests on real KVM.

mod devices;
mod disks;
mod epochs;
mod events;
mod levels;
mod life;
mod native;
mod pages;
mod specs;
mod support;
