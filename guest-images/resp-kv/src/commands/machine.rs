//! Commands about the machine beneath: page dirtying, clocks, and the ways it can end.

use crate::dirty::DirtySpec;
use crate::host::{Control, Host};
use crate::resp::{Command, Replies};
use alloc::string::ToString;
use core::fmt::Display;

fn ok_or_error<E: Display>(result: Result<(), E>, replies: &mut Replies) {
    match result {
        Ok(()) => replies.simple("OK"),
        Err(error) => replies.error(format_args!("ERR {error}")),
    }
}

pub(super) fn dirty<H: Host>(host: &mut H, command: &Command<'_>, replies: &mut Replies) {
    match (command.arg(1), command.len()) {
        (word, 2) if word.eq_ignore_ascii_case(b"STOP") => {
            host.dirty_stop();
            replies.simple("OK");
        }
        (word, 2) if word.eq_ignore_ascii_case(b"CHECK") => ok_or_error(host.dirty_check(), replies),
        _ => match DirtySpec::from_words(command.args_from(1)) {
            Ok(spec) => ok_or_error(host.dirty_start(spec), replies),
            Err(error) => replies.error(format_args!("ERR {error}")),
        },
    }
}

/// Names and numbers alternating, so that a person can read it and a program can too.
pub(super) fn dirty_stat<H: Host>(host: &H, replies: &mut Replies) {
    let stat = host.dirty_stat();
    replies.array(6);
    for (name, value) in
        [("running", u64::from(stat.running)), ("rounds", stat.rounds), ("page_writes", stat.page_writes)]
    {
        replies.bulk(name.as_bytes());
        replies.count(value);
    }
}

pub(super) fn clocks<H: Host>(host: &mut H, replies: &mut Replies) {
    let clocks = host.clocks();
    replies.array(4);
    for value in [clocks.mono_ns, clocks.wall_ns, clocks.boottime_ns, clocks.max_backward_step_ns] {
        replies.count(value);
    }
}

pub(super) fn time<H: Host>(host: &mut H, replies: &mut Replies) {
    let micros = host.clocks().wall_ns / 1000;
    replies.array(2);
    replies.bulk((micros / 1_000_000).to_string().as_bytes());
    replies.bulk((micros % 1_000_000).to_string().as_bytes());
}

pub(super) fn control<H: Host>(host: &mut H, name: &str, replies: &mut Replies) {
    let control = match name {
        "crash" => Control::Crash,
        "triplefault" => Control::TripleFault,
        "poweroff" => Control::PowerOff,
        _ => Control::Reset,
    };
    ok_or_error(host.control(control), replies);
}

#[cfg(test)]
mod tests {
    use crate::commands::tests::ask;

    #[test]
    fn a_host_without_these_says_so() {
        assert_eq!(ask("DIRTY hot 10\r\n"), "-ERR not available in this guest\r\n");
        assert_eq!(ask("CRASH\r\n"), "-ERR not available in this guest\r\n");
        assert_eq!(ask("DIRTY STOP\r\n"), "+OK\r\n");
        assert_eq!(ask("CLOCKS\r\n"), "*4\r\n:0\r\n:0\r\n:0\r\n:0\r\n");
        assert_eq!(ask("COUNTER\r\n"), ":0\r\n");
        assert!(ask("DIRTYSTAT\r\n").starts_with("*6\r\n$7\r\nrunning\r\n:0\r\n"));
        assert!(ask("DIRTY warm 10\r\n").starts_with("-ERR the pattern must be"));
    }
}
