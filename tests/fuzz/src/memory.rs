//! The heap with a limit: an input that makes a decoder take more fails, with the backtrace of whoever asked.

use std::alloc::System;

use cap::Cap;

use crate::limits::INPUT_HEAP_BYTES;

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// Runs `act` with [`INPUT_HEAP_BYTES`] to allocate. Whoever asks for more ends the process, unless it can do without.
pub(crate) fn bounded(act: impl FnOnce()) {
    let limit = HEAP.allocated().saturating_add(INPUT_HEAP_BYTES);
    assert!(HEAP.set_limit(limit).is_ok(), "the limit lies above what is allocated");
    act();
    assert!(HEAP.set_limit(usize::MAX).is_ok(), "there is no higher limit");
}
