//! Drives `mycelium-ram-core` against a real machine, a real link and a real arbiter.
//!
//! Threads of the active side, and what flows between them:
//!
//! ```text
//!   link, arbiter ──> inbox ──> protocol thread (active.rs: one core::Primary) ──orders──> epoch thread (epoch_loop.rs)
//!                                   │ release                                                │ pause, harvest, copy,
//!   device threads ──offer──> Gate <┘                                                        │ save, resume, send
//!   device threads ──deliver──> IngressTap ──> ingress thread ──> replicas                   v
//!   disks ──note──> DiskLog ──taken at the cut──> epoch thread <──copies── copier (copier.rs)  replicas
//! ```
//! Of the passive side:
//!
//! ```text
//!   link, arbiter ──> inbox ──> protocol thread (passive.rs: one core::Replica) ──frames──> staging thread (staging.rs)
//!                                   ^ whole epoch verified ──────────────────────────────────┘ │ apply
//!                                                                                               v guest RAM, disks
//! ```
//! The protocol threads never wait for anything but their inbox, so heartbeats keep their beat while epochs are copied.
//! What the drivers need from the outside is in [`ports`].

pub mod active;
pub mod clock;
mod copier;
mod delays;
pub mod disk_log;
mod disks;
pub mod drill;
pub mod epoch_loop;
pub mod events;
pub mod gate;
mod gauges;
pub mod ingress;
pub mod passive;
pub mod pause;
pub mod ports;
pub mod priority;
mod release;
pub mod staging;

pub use mycelium_ram_core as core;
