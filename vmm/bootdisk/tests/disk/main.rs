//! Whole disks, made here: real file systems by `mkfs.ext4`, partition tables by own hand.

mod boots;
mod image;
mod refuses;
