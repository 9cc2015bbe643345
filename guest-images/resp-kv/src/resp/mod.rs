//! RESP2 on the wire: requests in, replies out.

mod parser;
mod reply;

pub use parser::{Command, Parser, ProtocolError};
pub use reply::Replies;
