//! The native guest: a kernel of one program, which answers RESP on TCP port 6379 and dirties memory on demand.
//!
//! Ring 0 is interpreted on software-virtualised KVM, so everything but a few instructions runs in ring 3 with I/O
//! privilege: `boot.S` gets there, this binary stays there. There is one CPU, one thread and one address space;
//! interrupts are taken only while idle, so nothing here is ever interrupted.
#![no_std]
#![no_main]

extern crate alloc;

mod apic;
mod balloon;
mod boot;
mod clock;
mod devices;
mod disk;
mod entropy;
mod heap;
mod kernel;
mod machine;
mod mem;
mod net;
mod paging;
mod plug;
mod port;
mod power;
mod progress;
mod serial;
mod terminal;
mod traps;
mod virtio;
mod vsock;
mod watchdog;

use core::panic::PanicInfo;

/// Where `boot.S` arrives in ring 3.
#[unsafe(no_mangle)]
extern "C" fn guest_main() -> ! {
    traps::install();
    paging::guard_stack();
    let boot = boot::Boot::read();
    heap::claim(&boot.memory_map);
    kernel::run(boot.command_line.as_str())
}

/// A guest that panics says why on its console, tells the hypervisor, and never runs again.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    serial::log(format_args!("panic: {info}"));
    power::report_panic();
    power::stop()
}

/// The prebuilt `alloc` refers to the unwinder although this kernel is built to abort on panic.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    panic!("unwinding in a kernel that cannot unwind")
}
