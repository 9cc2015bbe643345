//! How the rest of the process reaches the migration under way.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use super::peer::Heard;

/// Rung to end a migration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bell(Arc<Mutex<Option<Sender<Heard>>>>);

impl Bell {
    /// A migration begins, or has ended.
    pub(super) fn hang(&self, inbox: Option<Sender<Heard>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = inbox;
    }

    /// Ends the migration, if it is not too late. `false`: there is none.
    pub(crate) fn cancel(&self, why: &str) -> bool {
        let inbox = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.as_ref().is_some_and(|inbox| inbox.send(Heard::Cancel(why.to_owned())).is_ok())
    }
}
