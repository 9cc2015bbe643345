//! What runs as the first process of a lab host, and the protocol by which tests drive it.
