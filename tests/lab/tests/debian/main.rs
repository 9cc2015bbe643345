//! A stock Debian, booted by its own boot entries from its own disk on our VMM, in emulated hosts.

mod bench;
mod devices;
mod guest;
mod moves;
mod redis;
mod takeover;
