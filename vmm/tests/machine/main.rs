//! Real guests on real KVM.

mod epochs;
mod events;
mod life;
mod specs;
mod support;
