//! The gate all vCPU threads of a machine wait behind.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, Once};
use std::time::{Duration, Instant};

use crate::limits::PARK_TIMEOUT_S;

/// How long the pausing thread looks before it sleeps: vCPUs usually arrive within this time, and waking a
/// sleeper costs more than it.
const SPIN: Duration = Duration::from_micros(30);

/// A vCPU did not leave the guest.
#[derive(Debug, thiserror::Error)]
#[error(
    "{missing} of {vcpus} vCPUs did not leave the guest within {PARK_TIMEOUT_S} s; the host kernel holds them"
)]
pub struct ParkTimeout {
    /// vCPUs still out.
    pub missing: usize,
    /// vCPUs of the machine.
    pub vcpus: usize,
}

/// Parks and releases all vCPUs at once.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    released: Condvar,
    arrived: Condvar,
    /// Read by vCPUs between two runs; true from the kick until the release.
    closing: AtomicBool,
}

#[derive(Debug)]
struct State {
    open: bool,
    stopping: bool,
    parked: usize,
    vcpus: Vec<Kick>,
}

/// What a parked vCPU is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Run the guest.
    Run,
    /// End the thread.
    Stop,
}

impl Gate {
    /// A closed gate.
    pub(crate) fn new() -> Gate {
        install_kick_handler();
        let state = State { open: false, stopping: false, parked: 0, vcpus: Vec::new() };
        Gate {
            state: Mutex::new(state),
            released: Condvar::new(),
            arrived: Condvar::new(),
            closing: AtomicBool::new(true),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the gate panics")
    }

    /// Adds the calling thread as a vCPU.
    pub(crate) fn join(&self, kick: Kick) {
        self.lock().vcpus.push(kick);
    }

    /// Waits, as a vCPU thread holding no lock, until the gate opens or the machine ends.
    pub(crate) fn park(&self) -> Next {
        let mut state = self.lock();
        state.parked += 1;
        self.arrived.notify_all();
        while !state.open && !state.stopping {
            state = self.released.wait(state).expect("no holder of the gate panics");
        }
        state.parked -= 1;
        if state.stopping { Next::Stop } else { Next::Run }
    }

    /// Whether a vCPU that left the guest should come here.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Lets all vCPUs run.
    pub(crate) fn open(&self) {
        let mut state = self.lock();
        state.open = true;
        self.closing.store(false, Ordering::SeqCst);
        self.released.notify_all();
    }

    /// Kicks all vCPUs out of the guest without waiting. Also for a vCPU thread that ends the run for all.
    pub(crate) fn close(&self) {
        self.close_locked(&mut self.lock());
    }

    fn close_locked(&self, state: &mut State) {
        state.open = false;
        self.closing.store(true, Ordering::SeqCst);
        // Pairs with the fence in `Kick::rearm`: a vCPU that misses `closing` sees its immediate-exit flag.
        fence(Ordering::SeqCst);
        state.vcpus.iter().for_each(Kick::send);
    }

    /// Kicks all vCPUs and waits until `vcpus` of them are parked.
    ///
    /// # Errors
    /// [`ParkTimeout`]; the gate stays closed.
    pub(crate) fn close_and_wait(&self, vcpus: usize) -> Result<(), ParkTimeout> {
        self.close_locked(&mut self.lock());
        let start = Instant::now();
        while start.elapsed() < SPIN {
            if self.lock().parked == vcpus {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        self.wait_parked(vcpus)
    }

    /// Waits until `vcpus` vCPUs are parked.
    ///
    /// # Errors
    /// [`ParkTimeout`].
    pub(crate) fn wait_parked(&self, vcpus: usize) -> Result<(), ParkTimeout> {
        let (state, _) = self
            .arrived
            .wait_timeout_while(self.lock(), Duration::from_secs(PARK_TIMEOUT_S), |s| s.parked != vcpus)
            .expect("no holder of the gate panics");
        match vcpus.saturating_sub(state.parked) {
            0 => Ok(()),
            missing => Err(ParkTimeout { missing, vcpus }),
        }
    }

    /// Tells all vCPU threads to end.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        self.close_locked(&mut state);
        self.released.notify_all();
    }
}

/// How to get one vCPU out of `KVM_RUN` from another thread.
#[derive(Debug)]
pub(crate) struct Kick {
    immediate_exit: NonNull<AtomicU8>,
    thread: libc::pid_t,
}

// SAFETY: the pointer is only ever used for atomic stores of one byte; see `Kick::new` for its lifetime.
unsafe impl Send for Kick {}

impl Kick {
    /// For the vCPU whose shared page `run` points to, run by the calling thread.
    ///
    /// # Safety
    /// The page must stay mapped until the last `Kick` made from it is dropped.
    pub(crate) unsafe fn new(run: *mut kvm_bindings::kvm_run) -> Kick {
        // SAFETY: `run` points to the mapped page by contract; no reference to the structure is made.
        let flag = unsafe { &raw mut (*run).immediate_exit };
        let immediate_exit = NonNull::new(flag.cast()).expect("a field of a mapped page is not null");
        // SAFETY: gettid takes no arguments and cannot fail.
        Kick { immediate_exit, thread: unsafe { libc::gettid() } }
    }

    fn flag(&self) -> &AtomicU8 {
        // SAFETY: mapped by the contract of `new`, one byte, and besides the kernel only atomics touch it.
        unsafe { self.immediate_exit.as_ref() }
    }

    /// Withdraws an earlier kick; the vCPU thread then looks at [`Gate::is_closing`] before it runs.
    pub(crate) fn rearm(&self) {
        self.flag().store(0, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    fn send(&self) {
        self.flag().store(1, Ordering::SeqCst);
        // SAFETY: tgkill takes integers only. A thread id that has ended is answered with ESRCH, and one of
        // another process cannot be hit: the first argument is our own.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.thread, kick_signal()) };
    }

    /// The same vCPU once more.
    pub(crate) fn again(&self) -> Kick {
        Kick { immediate_exit: self.immediate_exit, thread: self.thread }
    }
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

extern "C" fn on_kick(_: libc::c_int) {}

/// The signal only has to interrupt a blocking `KVM_RUN`; ignoring it would not.
fn install_kick_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a zeroed sigaction is a valid one (no flags, empty mask); the handler is async-signal-safe
        // because it does nothing.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_kick as *const () as usize;
            libc::sigaction(kick_signal(), &action, std::ptr::null_mut())
        };
        assert_eq!(result, 0, "a real-time signal can be handled: {}", io::Error::last_os_error());
    });
}
