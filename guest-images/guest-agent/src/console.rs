//! Where the agent's lines go.

use crate::sys;
use std::fs::OpenOptions;
use std::io;

/// Points the standard streams at the kernel's console: an initramfs without the node leaves them closed.
pub(crate) fn attach() -> io::Result<()> {
    let console = OpenOptions::new().read(true).write(true).open("/dev/console")?;
    sys::become_console(&console)
}
