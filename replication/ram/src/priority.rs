//! Threads that must not wait behind a busy machine.
//!
//! A heartbeat that leaves 60 ms late looks like a dead host. The threads that keep the beat use next to no processor time, so
//! they may go before everything else.

use rustix::process::setpriority_process;

/// Puts the calling thread before ordinary work; without the right to do so it stays as it is.
pub fn beat() {
    nice(-20);
}

/// Puts the calling thread before ordinary work, behind [`beat`]: it moves pages while a guest or a client waits.
pub fn work() {
    nice(-10);
}

fn nice(value: i32) {
    // On Linux a priority set for "this process" is the calling thread's alone.
    if let Err(error) = setpriority_process(None, value) {
        tracing::debug!(%error, value, "the thread keeps its priority");
    }
}
