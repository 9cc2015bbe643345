//! Shared ownership of a link by its application: when the last owner is gone, the link closes.

use std::sync::Arc;

use crate::close::CloseReason;
use crate::link::Link;

/// Held by every [`LinkSender`](crate::LinkSender) and the [`LinkReceiver`](crate::LinkReceiver), not by tasks.
#[derive(Debug)]
pub(crate) struct Handle {
    link: Arc<Link>,
}

impl Handle {
    pub(crate) fn new(link: Arc<Link>) -> Arc<Self> {
        Arc::new(Self { link })
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.link.close(CloseReason::Local);
    }
}
