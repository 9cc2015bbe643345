//! One logical link over many QUIC connections.
