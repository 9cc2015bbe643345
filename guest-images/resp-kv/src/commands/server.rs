//! Commands about the server itself: enough for stock clients to feel at home.

use super::{Arity, Quoted, SPECS, Spec, find};
use crate::engine::Engine;
use crate::host::Host;
use crate::resp::{Command, Replies};
use alloc::format;

pub(super) fn ping(command: &Command<'_>, replies: &mut Replies) {
    match command.len() {
        1 => replies.simple("PONG"),
        2 => replies.bulk(command.arg(1)),
        _ => replies.error(format_args!("ERR wrong number of arguments for 'ping' command")),
    }
}

pub(super) fn info<H: Host>(engine: &mut Engine<H>, replies: &mut Replies) {
    let uptime_s = engine.host.clocks().mono_ns.saturating_sub(engine.started_ns) / 1_000_000_000;
    let memory = engine.host.memory();
    let text = format!(
        "# Server\r\nserver_name:resp-kv\r\nversion:{}\r\nuptime_in_seconds:{uptime_s}\r\n\
         # Memory\r\nused_memory:{}\r\ntotal_memory:{}\r\nstore_bytes:{}\r\nstore_limit_bytes:{}\r\n\
         # Stats\r\ntotal_commands_processed:{}\r\n\
         # Keyspace\r\nkeys:{}\r\nrunning_digest:{}\r\n",
        env!("CARGO_PKG_VERSION"),
        memory.used_bytes,
        memory.total_bytes,
        engine.store.bytes(),
        engine.store.limit_bytes(),
        engine.commands_executed,
        engine.store.len(),
        engine.store.digest(),
    );
    replies.bulk(text.as_bytes());
}

pub(super) fn command(command: &Command<'_>, replies: &mut Replies) {
    match command.arg(1) {
        [] => {
            replies.array(SPECS.len());
            SPECS.iter().for_each(|spec| describe(spec, replies));
        }
        word if word.eq_ignore_ascii_case(b"COUNT") => replies.count(SPECS.len() as u64),
        word if word.eq_ignore_ascii_case(b"DOCS") => docs(command, replies),
        word => replies.error(format_args!("ERR unknown subcommand {}", Quoted(word))),
    }
}

fn describe(spec: &Spec, replies: &mut Replies) {
    let (first, last, step) = spec.keys;
    replies.array(6);
    replies.bulk(spec.name.as_bytes());
    replies.integer(spec.arity.as_reported());
    replies.array(1);
    replies.simple(if spec.writes { "write" } else { "readonly" });
    replies.integer(first);
    replies.integer(last);
    replies.integer(step);
}

/// A flat list of names and their documentation, as RESP2 clients expect a map.
fn docs(command: &Command<'_>, replies: &mut Replies) {
    if command.len() == 2 {
        replies.array(2 * SPECS.len());
        SPECS.iter().for_each(|spec| document(spec, replies));
        return;
    }
    replies.array(2 * command.args_from(2).filter(|name| find(name).is_some()).count());
    command.args_from(2).filter_map(find).for_each(|spec| document(spec, replies));
}

fn document(spec: &Spec, replies: &mut Replies) {
    replies.bulk(spec.name.as_bytes());
    replies.array(2);
    replies.bulk(b"summary");
    replies.bulk(spec.summary.as_bytes());
}

/// The settings that benchmark tools ask for before they start, with what is true here: nothing is persisted.
const SETTINGS: [(&str, &str); 4] =
    [("save", ""), ("appendonly", "no"), ("databases", "1"), ("maxmemory-policy", "noeviction")];

pub(super) fn config(command: &Command<'_>, replies: &mut Replies) {
    if !command.arg(1).eq_ignore_ascii_case(b"GET") || command.len() < 3 {
        return replies.error(format_args!("ERR only CONFIG GET PATTERN... is known here"));
    }
    let asked = |name: &str| {
        command.args_from(2).any(|pattern| pattern == b"*" || pattern.eq_ignore_ascii_case(name.as_bytes()))
    };
    replies.array(2 * SETTINGS.iter().filter(|(name, _)| asked(name)).count());
    for (name, value) in SETTINGS.iter().filter(|(name, _)| asked(name)) {
        replies.bulk(name.as_bytes());
        replies.bulk(value.as_bytes());
    }
}

pub(super) fn client(command: &Command<'_>, replies: &mut Replies) {
    let known = [("SETNAME", Arity::Exactly(3)), ("SETINFO", Arity::Exactly(4))];
    let word = command.arg(1);
    match known.iter().find(|(name, _)| word.eq_ignore_ascii_case(name.as_bytes())) {
        Some((_, arity)) if arity.admits(command.len()) => replies.simple("OK"),
        Some(_) => replies.error(format_args!("ERR wrong number of arguments for 'client' command")),
        None => replies.error(format_args!("ERR unknown subcommand {}", Quoted(word))),
    }
}

pub(super) fn select(command: &Command<'_>, replies: &mut Replies) {
    match command.arg(1) {
        b"0" => replies.simple("OK"),
        _ => replies.error(format_args!("ERR DB index is out of range")),
    }
}

#[cfg(test)]
mod tests {
    use crate::commands::tests::ask;

    #[test]
    fn what_stock_clients_send_at_start_is_answered() {
        assert_eq!(ask("CONFIG GET save\r\n"), "*2\r\n$4\r\nsave\r\n$0\r\n\r\n");
        assert_eq!(ask("CONFIG GET appendonly\r\n"), "*2\r\n$10\r\nappendonly\r\n$2\r\nno\r\n");
        assert_eq!(ask("CONFIG GET nothing\r\n"), "*0\r\n");
        assert_eq!(ask("CLIENT SETINFO LIB-NAME x\r\nCLIENT SETNAME y\r\n"), "+OK\r\n+OK\r\n");
        assert_eq!(ask("SELECT 0\r\nSELECT 1\r\n"), "+OK\r\n-ERR DB index is out of range\r\n");
        assert_eq!(ask("COMMAND COUNT\r\n"), ":29\r\n");
        assert!(ask("COMMAND DOCS get nope\r\n").starts_with("*2\r\n$3\r\nget\r\n*2\r\n$7\r\nsummary\r\n"));
        assert!(
            ask("COMMAND\r\n")
                .starts_with("*29\r\n*6\r\n$3\r\nget\r\n:2\r\n*1\r\n+readonly\r\n:1\r\n:1\r\n:1\r\n")
        );
        assert!(ask("COMMAND DOCS\r\n").starts_with("*58\r\n"));
        assert!(ask("INFO\r\n").contains("keys:0\r\n"));
        assert_eq!(ask("PING\r\nPING hi\r\nECHO ho\r\n"), "+PONG\r\n$2\r\nhi\r\n$2\r\nho\r\n");
    }
}
