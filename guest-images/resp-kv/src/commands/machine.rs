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

fn number<T: core::str::FromStr>(text: &[u8]) -> Option<T> {
    core::str::from_utf8(text).ok()?.parse().ok()
}

pub(super) fn disk<H: Host>(host: &mut H, command: &Command<'_>, replies: &mut Replies) {
    let word = |name: &[u8]| command.arg(1).eq_ignore_ascii_case(name);
    match (number(command.arg(2)), number(command.arg(3)), command.len()) {
        (_, _, 2) if word(b"FLUSH") => ok_or_error(host.disk_flush(), replies),
        (Some(sector), _, 3) if word(b"READ") => match host.disk_read(sector) {
            Ok(content) => replies.bulk(&content),
            Err(error) => replies.error(format_args!("ERR {error}")),
        },
        (Some(sector), Some(byte), 4) if word(b"WRITE") => {
            ok_or_error(host.disk_write(sector, byte), replies);
        }
        _ => replies.error(format_args!(
            "ERR syntax error; write BLK READ SECTOR, BLK WRITE SECTOR BYTE (0 to 255) or BLK FLUSH"
        )),
    }
}

/// As for [`dirty_stat`].
pub(super) fn balloon<H: Host>(host: &H, replies: &mut Replies) {
    match host.balloon() {
        Ok(pages) => {
            replies.array(4);
            for (name, value) in [("target", pages.target), ("actual", pages.actual)] {
                replies.bulk(name.as_bytes());
                replies.count(value);
            }
        }
        Err(error) => replies.error(format_args!("ERR {error}")),
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
        assert_eq!(ask("BLK READ 0\r\nBLK FLUSH\r\n"), "-ERR not available in this guest\r\n".repeat(2));
        assert_eq!(ask("BALLOON\r\n"), "-ERR not available in this guest\r\n");
        assert!(ask("BLK WRITE 1 256\r\n").starts_with("-ERR syntax error"));
        assert_eq!(ask("DIRTY STOP\r\n"), "+OK\r\n");
        assert_eq!(ask("CLOCKS\r\n"), "*4\r\n:0\r\n:0\r\n:0\r\n:0\r\n");
        assert_eq!(ask("COUNTER\r\n"), ":0\r\n");
        assert!(ask("DIRTYSTAT\r\n").starts_with("*6\r\n$7\r\nrunning\r\n:0\r\n"));
        assert!(ask("DIRTY warm 10\r\n").starts_with("-ERR the pattern must be"));
    }
}
