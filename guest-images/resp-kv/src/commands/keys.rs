//! Commands on entries.

use crate::limits::{MAX_KEY_BYTES, MAX_REPLY_BYTES};
use crate::resp::{Command, Replies};
use crate::store::{Store, StoreFull};
use alloc::string::ToString;

fn out_of_memory(replies: &mut Replies, error: StoreFull) {
    replies.error(format_args!("OOM command not allowed: {error}"));
}

/// Whether `key` may become an entry; if not, says so.
fn admit_key(key: &[u8], replies: &mut Replies) -> bool {
    let fits = key.len() <= MAX_KEY_BYTES;
    if !fits {
        replies.error(format_args!("ERR key of {} bytes; the limit is {MAX_KEY_BYTES}", key.len()));
    }
    fits
}

pub(super) fn get(store: &Store, command: &Command<'_>, replies: &mut Replies) {
    bulk_or_null(store.get(command.arg(1)), replies);
}

fn bulk_or_null(value: Option<&[u8]>, replies: &mut Replies) {
    match value {
        Some(value) => replies.bulk(value),
        None => replies.null(),
    }
}

pub(super) fn set(store: &mut Store, command: &Command<'_>, replies: &mut Replies) {
    let (key, value) = (command.arg(1), command.arg(2));
    let wanted = match command.arg(3) {
        [] => None,
        word if word.eq_ignore_ascii_case(b"NX") => Some(false),
        word if word.eq_ignore_ascii_case(b"XX") => Some(true),
        _ => return replies.error(format_args!("ERR syntax error")),
    };
    if command.len() > 4 {
        return replies.error(format_args!("ERR syntax error"));
    }
    if !admit_key(key, replies) {
        return;
    }
    if wanted.is_some_and(|wanted| store.get(key).is_some() != wanted) {
        return replies.null();
    }
    match store.set(key, value) {
        Ok(()) => replies.simple("OK"),
        Err(error) => out_of_memory(replies, error),
    }
}

/// An integer as Redis reads it: decimal, no blanks, no plus sign, no leading zero.
fn integer(text: &[u8]) -> Option<i64> {
    let value: i64 = core::str::from_utf8(text).ok()?.parse().ok()?;
    (value.to_string().as_bytes() == text).then_some(value)
}

pub(super) fn incr(store: &mut Store, command: &Command<'_>, replies: &mut Replies) {
    let key = command.arg(1);
    if !admit_key(key, replies) {
        return;
    }
    let Some(old) = store.get(key).map_or(Some(0), integer) else {
        return replies.error(format_args!("ERR value is not an integer or out of range"));
    };
    let Some(new) = old.checked_add(1) else {
        return replies.error(format_args!("ERR increment or decrement would overflow"));
    };
    match store.set(key, new.to_string().as_bytes()) {
        Ok(()) => replies.integer(new),
        Err(error) => out_of_memory(replies, error),
    }
}

pub(super) fn del(store: &mut Store, command: &Command<'_>, replies: &mut Replies) {
    let removed = command.args_from(1).filter(|key| store.remove(key)).count();
    replies.count(removed as u64);
}

pub(super) fn exists(store: &Store, command: &Command<'_>, replies: &mut Replies) {
    let found = command.args_from(1).filter(|key| store.get(key).is_some()).count();
    replies.count(found as u64);
}

/// Sets the pairs one by one. Where memory ends in between, the pairs before stay set and the reply is the error.
pub(super) fn mset(store: &mut Store, command: &Command<'_>, replies: &mut Replies) {
    if command.len().is_multiple_of(2) {
        return replies.error(format_args!("ERR wrong number of arguments for 'mset' command"));
    }
    for at in (1..command.len()).step_by(2) {
        if !admit_key(command.arg(at), replies) {
            return;
        }
    }
    for at in (1..command.len()).step_by(2) {
        if let Err(error) = store.set(command.arg(at), command.arg(at + 1)) {
            return out_of_memory(replies, error);
        }
    }
    replies.simple("OK");
}

pub(super) fn mget(store: &Store, command: &Command<'_>, replies: &mut Replies) {
    const PER_VALUE: usize = 16;
    let size = |key| PER_VALUE + store.get(key).map_or(0, <[u8]>::len);
    if command.args_from(1).map(size).sum::<usize>() > MAX_REPLY_BYTES {
        return replies
            .error(format_args!("ERR reply of more than {MAX_REPLY_BYTES} bytes; ask for fewer keys"));
    }
    replies.array(command.len() - 1);
    for key in command.args_from(1) {
        bulk_or_null(store.get(key), replies);
    }
}

pub(super) fn digest(store: &Store, command: &Command<'_>, replies: &mut Replies) {
    let digest = match command.arg(1) {
        [] => store.recomputed_digest(),
        word if word.eq_ignore_ascii_case(b"FULL") => store.recomputed_digest(),
        word if word.eq_ignore_ascii_case(b"RUNNING") => store.digest(),
        _ => return replies.error(format_args!("ERR syntax error; try DIGEST FULL or DIGEST RUNNING")),
    };
    replies.bulk(digest.to_string().as_bytes());
}

#[cfg(test)]
mod tests {
    use crate::commands::tests::{ask, ask_with_limit};
    use crate::digest::StoreDigest;
    use std::{format, string::ToString};

    #[test]
    fn set_get_del_exists() {
        assert_eq!(ask("SET a 1\r\nGET a\r\nGET b\r\n"), "+OK\r\n$1\r\n1\r\n$-1\r\n");
        assert_eq!(ask("SET a 1\r\nEXISTS a b a\r\nDEL a b\r\nDBSIZE\r\n"), "+OK\r\n:2\r\n:1\r\n:0\r\n");
        assert_eq!(
            ask("SET a 1 XX\r\nSET a 1 nx\r\nSET a 2 NX\r\nGET a\r\n"),
            "$-1\r\n+OK\r\n$-1\r\n$1\r\n1\r\n"
        );
        assert_eq!(ask("SET a 1 EX\r\nSET a 1 NX 5\r\n"), "-ERR syntax error\r\n-ERR syntax error\r\n");
        assert_eq!(ask("MSET a 1 b 2\r\nMGET a c b\r\n"), "+OK\r\n*3\r\n$1\r\n1\r\n$-1\r\n$1\r\n2\r\n");
        assert_eq!(ask("MSET a 1 b\r\n"), "-ERR wrong number of arguments for 'mset' command\r\n");
        assert_eq!(ask("SET a 1\r\nFLUSHALL ASYNC\r\nDBSIZE\r\n"), "+OK\r\n+OK\r\n:0\r\n");
    }

    #[test]
    fn incr_counts_and_refuses_what_is_no_number() {
        assert_eq!(ask("INCR a\r\nINCR a\r\nGET a\r\n"), ":1\r\n:2\r\n$1\r\n2\r\n");
        for text in ["x", "01", "+1", "1.5", "9223372036854775808"] {
            let reply = ask(&format!("SET a {text}\r\nINCR a\r\n"));
            assert_eq!(reply, "+OK\r\n-ERR value is not an integer or out of range\r\n");
        }
        let reply = ask(&format!("SET a {}\r\nINCR a\r\n", i64::MAX));
        assert_eq!(reply, "+OK\r\n-ERR increment or decrement would overflow\r\n");
    }

    #[test]
    fn the_digest_is_the_one_a_client_computes() {
        let mut expected = StoreDigest::new();
        expected.insert(b"a", b"2");
        expected.insert(b"b", b"x");
        let reply = ask("SET a 1\r\nINCR a\r\nSET b x\r\nSET c y\r\nDEL c\r\nDIGEST\r\n");
        assert!(reply.ends_with(&format!("$32\r\n{expected}\r\n")), "{reply}");
        let reply = ask("MSET a 2 b x\r\nDIGEST running\r\nDIGEST FULL\r\n");
        assert_eq!(reply.matches(&expected.to_string()).count(), 2);
    }

    #[test]
    fn a_full_store_answers_oom_and_goes_on() {
        let reply = ask_with_limit("SET a 1\r\nSET b 1\r\nGET a\r\nDEL a\r\nSET b 1\r\n", 128);
        assert!(reply.starts_with("+OK\r\n-OOM command not allowed"), "{reply}");
        assert!(reply.ends_with("$1\r\n1\r\n:1\r\n+OK\r\n"), "{reply}");
    }

    #[test]
    fn an_overlong_key_is_refused() {
        let reply = ask(&format!("*3\r\n$3\r\nSET\r\n$4097\r\n{}\r\n$1\r\n1\r\n", "k".repeat(4097)));
        assert_eq!(reply, "-ERR key of 4097 bytes; the limit is 4096\r\n");
    }
}
