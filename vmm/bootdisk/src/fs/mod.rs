//! What is in a partition, and the files of those that can be read.

mod ext;
mod guard;
mod kind;

pub(crate) use ext::{ExtFile, Files, FilesError, Found};
pub use kind::Kind;
pub(crate) use kind::identify;
