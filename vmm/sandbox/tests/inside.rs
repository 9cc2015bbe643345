//! What can be done inside. Each case runs in a process of its own: this program again, told by its environment what to try.
//!
//! Native to Linux on x86-64 and best run as root; what takes root is left out with a word otherwise.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use endophyte_sandbox::{EXIT_VIOLATION, Kind, Network, Plan, User, confine, enter, landlock_abi};

const CASE: &str = "SANDBOX_TEST_CASE";
const FOLDER: &str = "SANDBOX_TEST_FOLDER";
/// Exit code of a case whose attempt came through.
const CAME_THROUGH: i32 = 77;

/// Exit code of a case that a signal ended.
const KILLED: i32 = 99;

/// Every kind of thread, and how a violation calls it.
const KINDS: [(&str, Kind, &str); 7] = [
    ("vcpu", Kind::Vcpu, "vCPU"),
    ("devices", Kind::Devices, "devices"),
    ("disk", Kind::Disk, "disk"),
    ("balloon", Kind::Balloon, "balloon"),
    ("boot", Kind::Boot, "boot"),
    ("faults", Kind::Faults, "page faults"),
    ("runtime", Kind::Runtime, "runtime"),
];

/// Runs `case` in a process of its own, in `folder`.
fn try_in(folder: &Path, case: &str) -> Output {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "the_other_process", "--ignored", "--nocapture", "--test-threads=1"]);
    child.env(CASE, case).env(FOLDER, folder).env("RUST_BACKTRACE", "full").output().unwrap()
}

fn try_it(case: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    try_in(folder.path(), case)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

#[track_caller]
fn comes_through(output: &Output) {
    assert_eq!(output.status.code(), Some(CAME_THROUGH), "{}", said(output));
}

#[track_caller]
fn is_stopped(case: &str, call: libc::c_long) {
    let output = try_it(case);
    assert_eq!(output.status.code(), Some(i32::from(EXIT_VIOLATION)), "{case}: {}", said(&output));
    let kind = case.split_once('/').unwrap().0;
    let name = KINDS.iter().find(|(word, ..)| *word == kind).map_or("process", |(.., name)| *name);
    let word = format!("endophyte: thread culprit ({name}) used forbidden system call {call} (");
    assert!(said(&output).contains(&word), "{case}: {}", said(&output));
}

/// Not a test of its own: what the other tests start.
#[test]
#[ignore = "started by the other tests"]
fn the_other_process() {
    let Ok(case) = std::env::var(CASE) else { return };
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    // The test harness has threads; the sandbox is for processes that have none yet.
    let (kind, attempt) = case.split_once('/').unwrap();
    // SAFETY: the child only makes calls that are allowed after fork in a program with threads: it allocates, which glibc
    // makes safe by taking the allocator's locks around fork.
    match unsafe { libc::fork() } {
        0 => std::process::exit(play(&folder, kind, attempt)),
        child => {
            let mut status = 0;
            // SAFETY: the pointer is to a live local.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            std::process::exit(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { KILLED });
        }
    }
}

/// In a process with one thread: enters, becomes `kind`, and makes the attempt.
fn play(folder: &Path, kind: &str, attempt: &str) -> i32 {
    let mut plan = Plan { network: Network { peers: true, host_sockets: false }, ..Plan::default() };
    plan.files.read(&folder.join("kernel"));
    plan.files.read(&folder.join("readable"));
    plan.files.read_write(&folder.join("disk"));
    plan.files.keep(&folder.join("run"));
    plan.files.socket(&folder.join("run/api.sock"));
    plan.files.reach(&folder.join("reach"));
    plan.user = attempt.strip_prefix("as-").map(|user| user.parse().unwrap());
    plan.faults = true;
    plan.report = attempt.starts_with("reported-");
    if let Err(error) = enter(&plan) {
        eprintln!("{error}");
        return 1;
    }
    let kind = KINDS.iter().find(|(word, ..)| *word == kind).map(|(_, kind, _)| *kind);
    let (folder, attempt) = (folder.to_owned(), attempt.to_owned());
    let thread = move || {
        kind.into_iter().for_each(confine);
        let attempt = attempt.strip_prefix("reported-").unwrap_or(&attempt);
        match attempt {
            "files" => files(&folder),
            "rights" => rights(),
            user if user.starts_with("as-") => is_user(),
            other => carry_out(other),
        }
    };
    let thread = std::thread::Builder::new().name("culprit".into()).spawn(thread).unwrap();
    if thread.join().unwrap() { CAME_THROUGH } else { 1 }
}

/// What may end in a violation.
fn carry_out(attempt: &str) -> bool {
    const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: every call has arguments that are harmless even if it is carried out: null or literal pointers of the right
    // kind, and mappings of its own.
    unsafe {
        let x = c"x".as_ptr();
        let map = |prot| {
            libc::mmap(std::ptr::null_mut(), 4096, prot, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        match attempt {
            "exec" => drop(libc::execve(
                c"/bin/true".as_ptr(),
                [std::ptr::null()].as_ptr(),
                [std::ptr::null()].as_ptr(),
            )),
            "ptrace" => drop(libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0)),
            "tcp" => drop(libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)),
            "udp" => return libc::socket(libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 0) >= 0,
            "netlink" => drop(libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)),
            "unix" => return libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) >= 0,
            "executable" => drop(map(RW | libc::PROT_EXEC)),
            "made-executable" => drop(libc::mprotect(map(RW), 4096, libc::PROT_READ | libc::PROT_EXEC)),
            "memory" => return libc::mprotect(map(RW), 4096, libc::PROT_READ) == 0,
            "fork" => drop(libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0)),
            "namespace" => drop(libc::unshare(libc::CLONE_NEWUSER)),
            "bpf" => drop(libc::syscall(libc::SYS_bpf, 0, 0, 0)),
            "mount" => drop(libc::mount(x, x, x, 0, x.cast())),
            "keyctl" => drop(libc::syscall(libc::SYS_keyctl, 0, 0, 0, 0)),
            "ring" => drop(libc::syscall(libc::SYS_io_uring_setup, 1, 0)),
            "handler" => drop(libc::signal(libc::SIGSYS, libc::SIG_IGN)),
            "kill-others" => drop(libc::syscall(libc::SYS_tgkill, 1, 1, 0)),
            "tun-ioctl" => drop(libc::ioctl(0, 0x4004_54ca)),
            "kvm-create" => drop(libc::ioctl(0, 0xae01)),
            "uffd-copy" => return libc::ioctl(0, 0xc028_aa03) < 0,
            "uffd-new" => drop(libc::syscall(libc::SYS_userfaultfd, 0)),
            "punch" => return libc::fallocate(-1, libc::FALLOC_FL_PUNCH_HOLE, 0, 1) < 0,
            "connect" => drop(libc::connect(-1, std::ptr::null(), 0)),
            "read-vectored" => return libc::preadv(-1, std::ptr::null(), 0, 0) < 0,
            "crash" => return libc::signal(libc::SIGSEGV, libc::SIG_DFL) != libc::SIG_ERR,
            "confine-again" => {
                confine(Kind::Runtime);
                return true;
            }
            "kvm-run" => return libc::ioctl(0, 0xae80) < 0,
            "open" => {
                // Softly refused: the allocator tries.
                let fd = libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY);
                return fd < 0 && *libc::__errno_location() == libc::ENOSYS;
            }
            "open-write" => drop(libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY)),
            // With all that telling of it takes.
            "panic" => return std::panic::catch_unwind(|| panic!("on purpose")).is_err(),
            "thread" => return std::thread::spawn(|| 1).join().unwrap() == 1,
            other => panic!("{other} is no attempt"),
        }
    }
    true
}

/// Files inside and outside of what the plan names.
fn files(folder: &Path) -> bool {
    let denied = |result: std::io::Result<()>, what: &str| {
        let is = result.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied);
        assert!(is, "{what}: {result:?}");
    };
    let at = |name: &str| folder.join(name);
    let open_to_write = |name: &str| fs::File::options().write(true).open(at(name)).map(drop);
    assert_eq!(fs::read(at("kernel")).unwrap(), b"kernel");
    denied(open_to_write("kernel"), "writing what is read");
    open_to_write("disk").unwrap();
    denied(fs::read(at("secret")).map(drop), "reading a neighbour");
    denied(fs::read("/etc/passwd").map(drop), "reading the host");
    denied(fs::read_dir("/").map(drop), "listing the host");
    assert_eq!(fs::read(at("readable/base")).unwrap(), b"base");
    denied(fs::write(at("readable/new"), "x"), "making a file in a folder that is read");
    denied(fs::remove_file(at("readable/base")), "removing there");
    denied(fs::remove_file(at("disk")), "removing the disk");
    fs::write(at("run/.status.new"), "x").unwrap();
    fs::rename(at("run/.status.new"), at("run/status")).unwrap();
    denied(fs::rename(at("run/status"), at("status")), "moving a file out");
    denied(fs::create_dir(at("run/sub")), "making a folder");
    fs::write(at("reach/.saved.partial"), "x").unwrap();
    fs::rename(at("reach/.saved.partial"), at("reach/saved")).unwrap();
    fs::File::open(at("reach")).unwrap().sync_all().unwrap();
    let moved = fs::rename(at("reach/saved"), at("run/saved")).map_err(|error| error.kind());
    assert_eq!(moved, Err(std::io::ErrorKind::CrossesDevices), "moving a file between folders");
    drop(std::os::unix::net::UnixListener::bind(at("run/api.sock")).unwrap());
    fs::remove_file(at("run/api.sock")).unwrap();
    true
}

/// The user of the tests, with no way back.
fn is_user() -> bool {
    let ids = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    // SAFETY: room for no groups is asked for, which only counts them.
    let groups = unsafe { libc::getgroups(0, std::ptr::null_mut()) };
    assert_eq!((ids, groups), ((12345, 54321), 1));
    rights()
}

/// Capabilities, no_new_privs, limits, as the kernel shows them.
fn rights() -> bool {
    let status = rustix::thread::capabilities(None).unwrap();
    assert!(status.effective.is_empty() && status.permitted.is_empty() && status.inheritable.is_empty());
    assert!(rustix::thread::no_new_privs().unwrap());
    assert_eq!(rustix::process::getrlimit(rustix::process::Resource::Core).maximum, Some(0));
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    assert!(files.is_some_and(|most| most <= 16_384));
    true
}

fn folder_with_files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["run", "readable", "reach"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    for name in ["kernel", "disk", "secret"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    fs::write(dir.path().join("readable/base"), "base").unwrap();
    dir
}

fn is_root(what: &str) -> bool {
    let is = rustix::process::geteuid().is_root();
    if !is {
        println!("SKIPPED: {what} takes root");
    }
    is
}

#[test]
fn the_whole_process_may_not_do_what_escapes_are_made_of() {
    is_stopped("process/exec", libc::SYS_execve);
    is_stopped("process/ptrace", libc::SYS_ptrace);
    is_stopped("process/tcp", libc::SYS_socket);
    is_stopped("process/netlink", libc::SYS_socket);
    is_stopped("process/executable", libc::SYS_mmap);
    is_stopped("process/made-executable", libc::SYS_mprotect);
    is_stopped("process/fork", libc::SYS_clone);
    is_stopped("process/namespace", libc::SYS_unshare);
    is_stopped("process/bpf", libc::SYS_bpf);
    is_stopped("process/keyctl", libc::SYS_keyctl);
    is_stopped("process/handler", libc::SYS_rt_sigaction);
    is_stopped("process/kill-others", libc::SYS_tgkill);
    is_stopped("process/tun-ioctl", libc::SYS_ioctl);
}

#[test]
fn the_whole_process_may_do_what_it_needs() {
    for attempt in ["udp", "unix", "memory", "thread", "kvm-run", "kvm-create"] {
        comes_through(&try_it(&format!("process/{attempt}")));
    }
}

#[test]
fn each_kind_of_thread_is_stopped_at_what_is_not_its_own() {
    for (kind, ..) in KINDS {
        is_stopped(&format!("{kind}/exec"), libc::SYS_execve);
        is_stopped(&format!("{kind}/ptrace"), libc::SYS_ptrace);
        is_stopped(&format!("{kind}/tcp"), libc::SYS_socket);
        is_stopped(&format!("{kind}/unix"), libc::SYS_socket);
        is_stopped(&format!("{kind}/executable"), libc::SYS_mmap);
        is_stopped(&format!("{kind}/made-executable"), libc::SYS_mprotect);
        is_stopped(&format!("{kind}/ring"), libc::SYS_io_uring_setup);
        is_stopped(&format!("{kind}/mount"), libc::SYS_mount);
        is_stopped(&format!("{kind}/handler"), libc::SYS_rt_sigaction);
        is_stopped(&format!("{kind}/kvm-create"), libc::SYS_ioctl);
        is_stopped(&format!("{kind}/uffd-new"), libc::SYS_userfaultfd);
        comes_through(&try_it(&format!("{kind}/memory")));
        comes_through(&try_it(&format!("{kind}/crash")));
        comes_through(&try_it(&format!("{kind}/panic")));
    }
    for (kind, ..) in KINDS.into_iter().filter(|(kind, ..)| *kind != "runtime") {
        is_stopped(&format!("{kind}/udp"), libc::SYS_socket);
        is_stopped(&format!("{kind}/fork"), libc::SYS_clone);
        // The C library blocks signals while it starts a thread: then it is the kernel that kills.
        assert_eq!(try_it(&format!("{kind}/thread")).status.code(), Some(KILLED));
        comes_through(&try_it(&format!("{kind}/open")));
    }
    comes_through(&try_it("runtime/udp"));
    comes_through(&try_it("runtime/thread"));
    is_stopped("runtime/open-write", libc::SYS_openat);
    comes_through(&try_it("runtime/confine-again"));
    comes_through(&try_it("vcpu/kvm-run"));
    comes_through(&try_it("faults/uffd-copy"));
    comes_through(&try_it("balloon/punch"));
    comes_through(&try_it("boot/read-vectored"));
    for kind in ["devices", "disk", "balloon", "boot", "faults", "runtime"] {
        is_stopped(&format!("{kind}/kvm-run"), libc::SYS_ioctl);
    }
    for kind in ["vcpu", "devices", "disk", "balloon", "boot", "runtime"] {
        is_stopped(&format!("{kind}/uffd-copy"), libc::SYS_ioctl);
    }
    for kind in ["boot", "faults"] {
        is_stopped(&format!("{kind}/punch"), libc::SYS_fallocate);
    }
    for kind in ["vcpu", "devices", "disk", "balloon", "boot", "faults"] {
        is_stopped(&format!("{kind}/connect"), libc::SYS_connect);
    }
}

#[test]
fn the_culprit_is_named() {
    let output = try_it("vcpu/bpf");
    assert!(said(&output).contains("endophyte: thread culprit (vCPU) used"), "{}", said(&output));
}

#[test]
fn reported_violations_are_carried_out() {
    comes_through(&try_it("vcpu/reported-namespace"));
}

#[test]
fn files_outside_the_plan_are_out_of_reach() {
    if landlock_abi().is_none_or(|abi| abi < 3) {
        println!("SKIPPED: this kernel's Landlock cannot restrict all of it");
        return;
    }
    comes_through(&try_in(folder_with_files().path(), "process/files"));
}

#[test]
fn no_right_is_left() {
    comes_through(&try_it("process/rights"));
    comes_through(&try_it("vcpu/rights"));
}

#[test]
fn it_becomes_another_user_who_must_reach_the_files() {
    if !is_root("changing the user") {
        return;
    }
    let dir = folder_with_files();
    let refused = try_in(dir.path(), "process/as-12345");
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("user 12345 cannot"), "{}", said(&refused));
    let user = User { uid: 12345, gid: 54321 };
    for path in ["", "run", "readable", "reach", "kernel", "disk", "readable/base"] {
        std::os::unix::fs::chown(dir.path().join(path), Some(user.uid), Some(user.gid)).unwrap();
    }
    comes_through(&try_in(dir.path(), "process/as-12345:54321"));
}

#[test]
fn it_is_refused_when_there_are_threads() {
    let (stop, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || wait.recv());
    let refused = enter(&Plan::default()).unwrap_err().to_string();
    assert!(refused.contains("only thread"), "{refused}");
    drop(stop);
    drop(thread.join());
}
