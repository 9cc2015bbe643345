//! What happens on a forbidden system call: one line, and the end.

use std::io::Write;

use vmm_sys_util::signal::register_signal_handler;

use super::{Kind, own_kind};
use crate::limits::EXIT_VIOLATION;

/// The part of `siginfo_t` that seccomp fills, which `libc` has no names for.
#[repr(C)]
struct Violation {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    _padding: libc::c_int,
    address: *const libc::c_void,
    call: libc::c_int,
    _architecture: libc::c_uint,
}

const _: () = assert!(size_of::<Violation>() <= size_of::<libc::siginfo_t>());

/// `si_code` of a signal that a filter raised.
const SYS_SECCOMP: libc::c_int = 1;

pub(crate) fn install() -> std::io::Result<()> {
    register_signal_handler(libc::SIGSYS, on_violation).map_err(std::io::Error::from)
}

/// Only writes and ends: both are safe wherever the thread was interrupted.
extern "C" fn on_violation(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a whole `siginfo_t` to a handler with SA_SIGINFO, which is larger than `Violation` (checked
    // above) and lies on this thread's stack; its bytes are valid for every integer and raw pointer.
    let violation = unsafe { info.cast::<Violation>().read() };
    // SAFETY: the third argument of such a handler is a whole `ucontext_t` on this thread's stack.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let argument = |register: libc::c_int| usize::try_from(register).map_or(0, |at| registers[at]);
    let (first, second) = (argument(libc::REG_RDI), argument(libc::REG_RSI));
    let mut text = Line::default();
    let _ = if violation.code == SYS_SECCOMP {
        let name = thread_name();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = str::from_utf8(name).unwrap_or("?");
        let (call, kind) = (violation.call, own_kind().map_or("process", Kind::name));
        writeln!(
            text,
            "endophyte: thread {name} ({kind}) used forbidden system call {call} ({first:#x}, {second:#x}); the VM is stopped"
        )
    } else {
        writeln!(text, "endophyte: somebody sent SIGSYS; the VM is stopped")
    };
    end(str::from_utf8(&text.bytes[..text.length]).unwrap_or_default());
}

/// Says why and ends the process without another word.
pub(super) fn end(why: &str) -> ! {
    let _ = rustix::io::write(std::io::stderr(), why.as_bytes());
    // SAFETY: `_exit` takes a number and runs nothing of this process any more.
    unsafe { libc::_exit(libc::c_int::from(EXIT_VIOLATION)) }
}

/// The kernel's name of this thread: 15 bytes and a NUL.
fn thread_name() -> [u8; 16] {
    let mut name = [0u8; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes to the pointer, which is to a live local of that size.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    name
}

/// Text on the stack: a handler must not allocate.
struct Line {
    bytes: [u8; 160],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 160], length: 0 }
    }
}

impl Write for Line {
    fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
        let written = (&mut self.bytes[self.length..]).write(from)?;
        self.length += written;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
