//! The tasks that serve one connection.

pub(crate) mod connection;
pub(crate) mod stripes_in;
pub(crate) mod stripes_out;
