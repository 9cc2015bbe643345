//! The memory routines that compiled code calls. `rep` string instructions run natively in ring 3 and are as fast
//! as anything for the sizes seen here.

use core::arch::asm;

/// Copies `count` bytes between regions that do not overlap.
///
/// # Safety
/// As for C's `memcpy`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both regions; the direction flag is clear, as the calling convention demands.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// Copies `count` bytes between regions that may overlap.
///
/// # Safety
/// As for C's `memmove`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= count {
        // SAFETY: `to` is not within [from, from + count), so copying upwards reads each byte before writing it.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: `to` lies within the source, so copying downwards reads each byte before writing it; count is not
    // zero here, so both last bytes exist. The direction flag is put back.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _, inout("rdi") to.add(count - 1) => _,
            inout("rsi") from.add(count - 1) => _, options(nostack));
    }
    to
}

/// Sets `count` bytes to the low byte of `value`.
///
/// # Safety
/// As for C's `memset`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the region; the direction flag is clear.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") value.to_le_bytes()[0],
            options(nostack, preserves_flags));
    }
    to
}

/// Compares `count` bytes.
///
/// # Safety
/// As for C's `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    let mut at = 0;
    // Eight at a time while they are equal: a plain byte loop would be turned into a call of this very function
    // or be slow for long keys.
    while at + 8 <= count {
        // SAFETY: at + 8 <= count, within both regions.
        let equal =
            unsafe { a.add(at).cast::<u64>().read_unaligned() == b.add(at).cast::<u64>().read_unaligned() };
        if !equal {
            break;
        }
        at += 8;
    }
    while at < count {
        // SAFETY: at < count, within both regions.
        let (x, y) = unsafe { (a.add(at).read(), b.add(at).read()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
        at += 1;
    }
    0
}

/// Compares `count` bytes for equality only.
///
/// # Safety
/// As for C's `bcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, count) }
}
