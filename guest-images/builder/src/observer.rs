//! Who watches long work, and may end it.

/// Is told how long work goes on, and asked whether it shall.
pub trait Observer {
    /// A step begins; `what` is a short phrase for people.
    fn step(&self, what: &str);

    /// Bytes done of the current step.
    fn progress(&self, _done: u64, _total: u64) {}

    /// Whether the work shall end early. Asked often, from the thread that works.
    fn stopped(&self) -> bool {
        false
    }
}

/// Watches nothing and never ends anything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl Observer for Unwatched {
    fn step(&self, _what: &str) {}
}
