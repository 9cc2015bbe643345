//! Which thread may do what. `docs/sandbox.md` has the table and the reasons.

use libc::{PROT_EXEC, c_long};
use seccompiler::{BpfProgram, Error, SeccompAction};

use super::calls::{ADDRESSES, BUILDING, CHANGING, LOOKING, OPEN_FILES, ORDINARY, READ_FILES, SOCKETS};
use super::rules::{Rules, has, is, is_not, is_null, lacks};
use super::{Kind, Network};
use crate::Plan;

/// `ioctl` numbers of KVM carry its letter in bits 8 to 15.
const KVM_LETTER: (u32, u32) = (0xff00, 0xae00);
const KVM_RUN: u32 = 0xae80;
/// Of a vCPU thread that explains why it cannot go on.
const KVM_GET_REGS: u32 = 0x8090_ae81;
/// A guest programs its interrupts and moves its devices' doorbells through a vCPU's exits; some lines are set by hand.
const KVM_WIRING: [u32; 4] = [KVM_SET_GSI_ROUTING, KVM_IRQFD, KVM_IOEVENTFD, KVM_IRQ_LINE];
const KVM_IRQ_LINE: u32 = 0x4008_ae61;
const KVM_SET_GSI_ROUTING: u32 = 0x4008_ae6a;
const KVM_IRQFD: u32 = 0x4020_ae76;
const KVM_IOEVENTFD: u32 = 0x4040_ae79;
/// Of a userfaultfd that is open: UFFDIO_REGISTER, and what serves faults.
const FAULTS_BEGIN: u32 = 0xc020_aa00;
/// UFFDIO_UNREGISTER, UFFDIO_WAKE, UFFDIO_COPY, UFFDIO_ZEROPAGE.
const FAULTS: [u32; 4] = [0x8010_aa01, 0x8010_aa02, 0xc028_aa03, 0xc020_aa04];
/// Sizes of block devices, giving blocks back, zeroing them: BLKGETSIZE64, BLKSSZGET, BLKPBSZGET, BLKDISCARD, BLKZEROOUT.
const BLOCK_DEVICE: [u32; 5] = [0x8008_1272, 0x1268, 0x127b, 0x1277, 0x127f];
/// A tap follows its guest's driver: TUNSETOFFLOAD, TUNSETQUEUE.
const TAPS: [u32; 2] = [0x4004_54d0, 0x4004_54d9];
/// What a tap that is open already is asked when a card is put on it: TUNGETIFF, TUNSETVNETHDRSZ.
const TAPS_TAKEN: [u32; 2] = [0x8004_54d2, 0x4004_54d8];
/// Looking for a tap by its name and opening it: SIOCGIFINDEX, TUNSETIFF.
const TAPS_OPENED: [u32; 2] = [0x8933, 0x4004_54ca];
/// Terminals are told from files, and sockets made non-blocking: TCGETS, FIONBIO, FIONREAD, FIOCLEX.
const DESCRIPTORS: [u32; 4] = [0x5401, 0x5421, 0x541b, 0x5451];

/// Flags of an `open` that changes nothing but the descriptor table.
const OPEN_CHANGES: u32 =
    bits(libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_TMPFILE & !libc::O_DIRECTORY);
/// What tells a new thread from a new process or a new namespace.
const CLONE_MASK: u32 = bits(
    libc::CLONE_VM
        | libc::CLONE_THREAD
        | libc::CLONE_SIGHAND
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_PTRACE,
);
const CLONE_A_THREAD: u32 = bits(libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND);
/// Tells a process what the kernel gave it at its start; `libc` has no name for it yet.
const PR_GET_AUXV: u32 = 0x4155_5856;
/// The kind of a socket without its flags.
const SOCKET_KIND: u32 = 0xf;

/// The same bits; flags are written as `int` in C and never negative.
const fn bits(flags: libc::c_int) -> u32 {
    flags.cast_unsigned()
}

/// The rules of one kind of thread.
pub(super) struct Policy {
    /// What it may.
    allowed: Rules,
    /// Of these, what is answered with ENOSYS all the same.
    refused: Rules,
}

impl Policy {
    /// The filter of what is refused softly.
    pub(super) fn soft(&self) -> Result<BpfProgram, Error> {
        let enosys = libc::ENOSYS.cast_unsigned();
        self.refused.clone().compile(SeccompAction::Errno(enosys), SeccompAction::Allow)
    }

    /// The filter of what is allowed; everything else is a `violation`.
    pub(super) fn hard(self, violation: SeccompAction) -> Result<BpfProgram, Error> {
        let mut allowed = self.allowed;
        // Of two answers the kernel takes the harder: the other filter's error only comes about if this one says nothing.
        for call in self.refused.calls() {
            allowed.all(&[call]);
        }
        allowed.compile(SeccompAction::Allow, violation)
    }

    fn refuse(&mut self, calls: &[c_long]) {
        self.refused.all(calls);
    }
}

/// `clone3` hides its flags from filters: C libraries fall back to `clone`. The C library's allocator reads a setting under
/// /proc in whatever thread first gives memory back, and Rust's panics look for sources; both do without.
const SOFTLY_REFUSED: [c_long; 5] =
    [libc::SYS_clone3, libc::SYS_open, libc::SYS_openat, libc::SYS_readlink, libc::SYS_getcwd];

/// The rules of the whole process: of the thread that builds the machine, boots it and watches over it, and of helpers that
/// no kind is made for.
pub(super) fn of_process(plan: &Plan) -> Policy {
    let mut allowed = ordinary();
    allowed.all(OPEN_FILES).all(LOOKING).all(CHANGING).all(SOCKETS).all(ADDRESSES).all(BUILDING);
    allowed.when(libc::SYS_ioctl, [is(1, KVM_RUN)]);
    allowed.when(libc::SYS_ioctl, [has(1, KVM_LETTER.0, KVM_LETTER.1)]);
    ioctls(&mut allowed, &BLOCK_DEVICE);
    ioctls(&mut allowed, &TAPS);
    ioctls(&mut allowed, &TAPS_TAKEN);
    if plan.taps {
        ioctls(&mut allowed, &TAPS_OPENED);
    }
    threads(&mut allowed);
    unix_sockets(&mut allowed);
    if plan.network.peers {
        udp_sockets(&mut allowed);
    }
    if plan.faults {
        ioctls(&mut allowed, &[FAULTS_BEGIN]);
        ioctls(&mut allowed, &FAULTS);
    }
    allowed.when(libc::SYS_prctl, [is(0, bits(libc::PR_SET_NO_NEW_PRIVS))]);
    // Any but the one that ends this process.
    allowed.when(libc::SYS_rt_sigaction, [is_not(0, bits(libc::SIGSYS))]);
    let mut policy = Policy { allowed, refused: Rules::default() };
    policy.refuse(&[libc::SYS_clone3, libc::SYS_open]);
    policy
}

/// The narrower rules of a kind of thread.
pub(super) fn of(kind: Kind, plan: &Plan) -> Policy {
    let mut allowed = ordinary();
    match kind {
        Kind::Vcpu => vcpu(&mut allowed),
        Kind::Devices => devices(&mut allowed, plan.network),
        Kind::Disk => disk(&mut allowed),
        Kind::Balloon => balloon(&mut allowed),
        Kind::Boot => {
            allowed.all(READ_FILES);
        }
        Kind::Faults => ioctls(&mut allowed, &FAULTS),
        Kind::Runtime => runtime(&mut allowed, plan.network),
    }
    let mut policy = Policy { allowed, refused: Rules::default() };
    if kind == Kind::Runtime {
        // The last to let go of a machine removes its sockets; should it be one of these, they stay.
        policy.refuse(&[libc::SYS_clone3, libc::SYS_open, libc::SYS_unlink, libc::SYS_unlinkat]);
    } else {
        policy.refuse(&SOFTLY_REFUSED);
    }
    policy
}

fn ordinary() -> Rules {
    let mut rules = Rules::default();
    // First of its call's ways in every filter, since every exit of a guest comes by.
    rules.all(ORDINARY);
    rules.when(libc::SYS_mmap, [lacks(2, bits(PROT_EXEC))]);
    rules.when(libc::SYS_mprotect, [lacks(2, bits(PROT_EXEC))]);
    // How a crash becomes one: the handler that tells of an overflown stack goes, and so does abort's.
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT] {
        rules.when(libc::SYS_rt_sigaction, [is(0, bits(signal))]);
    }
    // A signal to a thread of this process: a vCPU is kicked out of the guest, or abort().
    rules.when(libc::SYS_tgkill, [is(0, std::process::id())]);
    rules.when(libc::SYS_prctl, [is(0, bits(libc::PR_SET_NAME))]);
    rules.when(libc::SYS_prctl, [is(0, bits(libc::PR_GET_NAME))]);
    rules.when(libc::SYS_prctl, [is(0, bits(libc::PR_SET_VMA))]);
    rules.when(libc::SYS_prctl, [is(0, bits(libc::PR_GET_NO_NEW_PRIVS))]);
    rules.when(libc::SYS_prctl, [is(0, PR_GET_AUXV)]);
    rules.when(libc::SYS_prlimit64, [is_null(2)]);
    for command in [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC] {
        rules.when(libc::SYS_fcntl, [is(1, bits(command))]);
    }
    rules
}

/// A guest's accesses: they wire interrupts, say what a tap is to do, and a driver that resets its disk has requests waited
/// for here.
fn vcpu(rules: &mut Rules) {
    rules.when(libc::SYS_ioctl, [is(1, KVM_RUN)]);
    rules.when(libc::SYS_ioctl, [is(1, KVM_GET_REGS)]);
    ioctls(rules, &KVM_WIRING);
    ioctls(rules, &TAPS);
    rules.all(OPEN_FILES);
    rules.all(SOCKETS);
}

/// Frames, console bytes, streams.
fn devices(rules: &mut Rules, network: Network) {
    ioctls(rules, &KVM_WIRING);
    ioctls(rules, &TAPS);
    ioctls(rules, &DESCRIPTORS);
    rules.all(SOCKETS).all(&[libc::SYS_fallocate]);
    if network.host_sockets {
        rules.all(&[libc::SYS_connect]);
        rules.when(
            libc::SYS_socket,
            [is(0, bits(libc::AF_UNIX)), has(1, SOCKET_KIND, bits(libc::SOCK_STREAM))],
        );
    }
}

/// Holes are made in the guest's memory, which is a file.
fn balloon(rules: &mut Rules) {
    ioctls(rules, &KVM_WIRING);
    rules.all(&[libc::SYS_fallocate]);
}

fn disk(rules: &mut Rules) {
    ioctls(rules, &KVM_WIRING);
    ioctls(rules, &BLOCK_DEVICE);
    rules.all(OPEN_FILES).all(&[libc::SYS_statx]);
}

/// Speaks to peers and API clients. New sockets are for peers only; files are read, not changed.
fn runtime(rules: &mut Rules, network: Network) {
    ioctls(rules, &DESCRIPTORS);
    ioctls(rules, &KVM_WIRING);
    rules.all(SOCKETS).all(LOOKING).all(&[
        libc::SYS_timerfd_create,
        libc::SYS_epoll_create1,
        libc::SYS_uname,
        // A thread started by such a one confines itself, too; both only ever take away.
        libc::SYS_capset,
        libc::SYS_seccomp,
    ]);
    rules.when(libc::SYS_prctl, [is(0, bits(libc::PR_SET_NO_NEW_PRIVS))]);
    rules.when(libc::SYS_openat, [lacks(2, OPEN_CHANGES)]);
    threads(rules);
    if network.peers {
        rules.all(&[libc::SYS_bind, libc::SYS_connect]);
        udp_sockets(rules);
    }
}

fn ioctls(rules: &mut Rules, numbers: &[u32]) {
    for number in numbers {
        rules.when(libc::SYS_ioctl, [is(1, *number)]);
    }
}

/// Starting threads, and raising or lowering one's own priority.
fn threads(rules: &mut Rules) {
    rules.when(libc::SYS_clone, [has(0, CLONE_MASK, CLONE_A_THREAD)]);
    rules.all(&[libc::SYS_set_tid_address]);
    let myself = [is(0, bits(0)), is(1, 0)];
    rules.when(libc::SYS_setpriority, myself.clone());
    rules.when(libc::SYS_getpriority, myself);
    ioctls(rules, &DESCRIPTORS);
}

fn unix_sockets(rules: &mut Rules) {
    rules.when(libc::SYS_socket, [is(0, bits(libc::AF_UNIX))]);
    rules.when(libc::SYS_socketpair, [is(0, bits(libc::AF_UNIX))]);
}

/// No TCP, no raw sockets, no netlink.
fn udp_sockets(rules: &mut Rules) {
    for family in [libc::AF_INET, libc::AF_INET6] {
        rules.when(libc::SYS_socket, [is(0, bits(family)), has(1, SOCKET_KIND, bits(libc::SOCK_DGRAM))]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> Plan {
        let network = Network { peers: true, host_sockets: true };
        Plan { network, faults: true, ..Plan::default() }
    }

    fn all() -> Vec<Policy> {
        let mut policies: Vec<_> = super::super::KINDS.iter().map(|kind| of(*kind, &everything())).collect();
        policies.push(of_process(&everything()));
        policies
    }

    #[test]
    fn nobody_may_do_what_escapes_are_made_of() {
        let deadly = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_fsopen,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_kexec_load,
            libc::SYS_userfaultfd,
            libc::SYS_pidfd_getfd,
            libc::SYS_open_by_handle_at,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_personality,
            libc::SYS_pkey_mprotect,
            libc::SYS_shmat,
            libc::SYS_modify_ldt,
            libc::SYS_openat2,
            libc::SYS_chmod,
            libc::SYS_chown,
            libc::SYS_link,
            libc::SYS_symlink,
            libc::SYS_mknod,
        ];
        for policy in all() {
            for call in deadly {
                assert!(!policy.allowed.has(call), "call {call}");
            }
        }
    }

    #[test]
    fn threads_that_serve_a_guest_make_nothing_new() {
        let making = [
            libc::SYS_clone,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_register,
            libc::SYS_bind,
            libc::SYS_seccomp,
            libc::SYS_capset,
            libc::SYS_memfd_create,
            libc::SYS_unlinkat,
            libc::SYS_openat,
        ];
        for kind in [Kind::Vcpu, Kind::Devices, Kind::Disk, Kind::Balloon, Kind::Boot, Kind::Faults] {
            let rules = of(kind, &everything()).allowed;
            making.iter().for_each(|call| assert!(!rules.has(*call), "{kind:?}: {call}"));
        }
        assert!(!of(Kind::Devices, &Plan::default()).allowed.has(libc::SYS_connect));
        assert!(!of(Kind::Runtime, &Plan::default()).allowed.has(libc::SYS_socket));
        for kind in [Kind::Boot, Kind::Balloon, Kind::Faults] {
            assert!(!of(kind, &everything()).allowed.has(libc::SYS_sendmsg), "{kind:?}");
        }
        assert!(!of(Kind::Boot, &everything()).allowed.has(libc::SYS_ioctl));
    }

    #[test]
    fn every_filter_is_a_program_the_kernel_takes() {
        // 4096 instructions are the kernel's limit for one, and 32768 for all of a thread.
        for policy in all() {
            let (soft, hard) = (policy.soft().unwrap(), policy.hard(SeccompAction::Trap).unwrap());
            assert!((1..4096).contains(&soft.len()) && (1..4096).contains(&hard.len()), "{}", hard.len());
        }
    }
}
