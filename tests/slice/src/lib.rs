//! What the tests of the whole product share: a machine of one's own with a real containerd in it, images, pods through
//! the CRI socket as kubelet drives it, and a count of everything that could be left behind.

pub mod cluster;
pub mod containerd;
pub mod count;
pub mod counter;
pub mod cri;
pub mod image;
pub mod machine;
pub mod needs;
pub mod network;
pub mod reconnecting;
pub mod resp;
pub mod world;

/// The pod runtime under test.
pub const HANDLER: &str = "endophyte";
