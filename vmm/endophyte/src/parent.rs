//! Not outliving the caller.

use std::io;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Has the kernel kill this process when the thread that started it ends. Call first thing: a parent that is gone
/// before the call cannot be told from one that stays.
///
/// # Errors
/// When the parent has just ended, or the kernel refuses.
pub(crate) fn die_with_parent() -> io::Result<()> {
    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before the signal was asked for; then nobody would send it.
    if getppid() == parent {
        Ok(())
    } else {
        Err(io::Error::other("the process that started this one has ended already"))
    }
}
