//! Registers that a guest reads with any width, from any of their bytes on.

/// Copies `from`, from `offset` on, as far as there is room; what lies past its end is left as it is.
pub(crate) fn copy(from: &[u8], offset: usize, into: &mut [u8]) {
    for (to, byte) in into.iter_mut().zip(from.iter().skip(offset)) {
        *to = *byte;
    }
}
