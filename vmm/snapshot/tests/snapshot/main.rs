//! Snapshot files and lazy restores against the real kernel.

mod damage;
mod kvm;
mod lazy;
mod measure;
mod room;
mod round_trip;
mod support;
