//! Stripe buffers that are used again, already touched.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rhizomorph_proto::limits::{STRIPE_MAX, STRIPE_MIN};

use crate::limits::POOLED_BUFFERS;

/// Hands out buffers; those of whole stripes come back when the last user of their bytes is gone.
#[derive(Clone, Debug, Default)]
pub(crate) struct BufferPool {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl BufferPool {
    /// A zeroed or reused buffer of exactly `len` bytes, at most [`STRIPE_MAX`].
    pub(crate) fn get(&self, len: usize) -> PooledBuffer {
        debug_assert!(len <= STRIPE_MAX, "a stripe's length was checked when its header was read");
        let reused = if len < STRIPE_MIN { None } else { self.lock().pop() };
        let mut bytes = reused.unwrap_or_default();
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        PooledBuffer { bytes, len, home: self.clone() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One buffer on loan.
pub(crate) struct PooledBuffer {
    bytes: Vec<u8>,
    len: usize,
    home: BufferPool,
}

impl PooledBuffer {
    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }

    /// Turns the filled buffer into shared bytes, which return it when dropped.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        if self.bytes.len() < STRIPE_MIN {
            return;
        }
        let mut free = self.home.lock();
        if free.len() < POOLED_BUFFERS {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stripe_buffer_comes_back_and_a_small_one_does_not() {
        let pool = BufferPool::default();
        let shared = pool.get(STRIPE_MIN).freeze();
        let address = shared.as_ptr();
        drop(shared);
        drop(pool.get(10).freeze());
        assert_eq!(pool.lock().len(), 1);
        assert_eq!(pool.get(STRIPE_MIN).freeze().as_ptr(), address);
    }

    #[test]
    fn a_reused_buffer_has_the_length_asked_for() {
        let pool = BufferPool::default();
        drop(pool.get(STRIPE_MAX).freeze());
        assert_eq!(pool.get(STRIPE_MIN + 1).freeze().len(), STRIPE_MIN + 1);
    }
}
