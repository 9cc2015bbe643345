//! The commands: one table that names them, their argument counts and the functions that carry them out.

mod keys;
mod machine;
mod server;

use crate::engine::Engine;
use crate::host::Host;
use crate::resp::{Command, Replies};
use core::fmt;
use core::ops::ControlFlow;

/// How many arguments a command takes, its name included.
#[derive(Clone, Copy)]
enum Arity {
    Exactly(usize),
    AtLeast(usize),
}

impl Arity {
    fn admits(self, count: usize) -> bool {
        match self {
            Self::Exactly(want) => count == want,
            Self::AtLeast(least) => count >= least,
        }
    }

    /// As `COMMAND` reports it: negative for a minimum.
    fn as_reported(self) -> i64 {
        match self {
            Self::Exactly(count) => i64::try_from(count).unwrap_or(i64::MAX),
            Self::AtLeast(count) => -i64::try_from(count).unwrap_or(i64::MAX),
        }
    }
}

/// Which arguments are keys, as `COMMAND` reports it: first, last (-1 is the final argument), step.
type KeyPositions = (i64, i64, i64);
const NO_KEYS: KeyPositions = (0, 0, 0);

/// What a user reads about a command, and what is checked before it runs.
struct Spec {
    name: &'static str,
    arity: Arity,
    keys: KeyPositions,
    writes: bool,
    summary: &'static str,
}

const fn spec(
    name: &'static str,
    arity: Arity,
    keys: KeyPositions,
    writes: bool,
    summary: &'static str,
) -> Spec {
    Spec { name, arity, keys, writes, summary }
}

use Arity::{AtLeast, Exactly};

/// Every command, the most frequent first: lookup goes down the list.
#[rustfmt::skip]
static SPECS: [Spec; 29] = [
    spec("get", Exactly(2), (1, 1, 1), false, "The value of a key"),
    spec("set", AtLeast(3), (1, 1, 1), true, "Sets a key; NX only if absent, XX only if present"),
    spec("incr", Exactly(2), (1, 1, 1), true, "Adds one to an integer value"),
    spec("ping", AtLeast(1), NO_KEYS, false, "PONG, or the message given"),
    spec("del", AtLeast(2), (1, -1, 1), true, "Removes keys"),
    spec("exists", AtLeast(2), (1, -1, 1), false, "How many of the keys exist"),
    spec("mset", AtLeast(3), (1, -1, 2), true, "Sets several keys"),
    spec("mget", AtLeast(2), (1, -1, 1), false, "The values of several keys"),
    spec("echo", Exactly(2), NO_KEYS, false, "The message given"),
    spec("dbsize", Exactly(1), NO_KEYS, false, "Number of keys"),
    spec("flushall", AtLeast(1), NO_KEYS, true, "Removes every key"),
    spec("digest", AtLeast(1), NO_KEYS, false, "Order-independent digest of the store: FULL (computed anew, the default) or RUNNING"),
    spec("dirty", AtLeast(2), NO_KEYS, false, "Dirties memory: DIRTY PATTERN PAGES [PAGES-PER-SECOND], DIRTY STOP, DIRTY CHECK"),
    spec("dirtystat", Exactly(1), NO_KEYS, false, "Progress of DIRTY: running, rounds, page writes"),
    spec("clocks", Exactly(1), NO_KEYS, false, "Monotonic, wall and boot time and the largest step back, in nanoseconds"),
    spec("counter", Exactly(1), NO_KEYS, false, "Number of tick lines printed on the console"),
    spec("info", AtLeast(1), NO_KEYS, false, "State of the server"),
    spec("command", AtLeast(1), NO_KEYS, false, "This list: COMMAND, COMMAND COUNT, COMMAND DOCS [NAME...]"),
    spec("config", AtLeast(2), NO_KEYS, false, "CONFIG GET PATTERN..."),
    spec("client", AtLeast(2), NO_KEYS, false, "CLIENT SETNAME and SETINFO, accepted and ignored"),
    spec("select", Exactly(2), NO_KEYS, false, "SELECT 0: there is one database"),
    spec("quit", AtLeast(1), NO_KEYS, false, "Closes the connection"),
    spec("crash", Exactly(1), NO_KEYS, false, "Panics the guest"),
    spec("triplefault", Exactly(1), NO_KEYS, false, "Makes the guest fault beyond recovery"),
    spec("poweroff", Exactly(1), NO_KEYS, false, "Powers the guest off"),
    spec("reset", Exactly(1), NO_KEYS, false, "Resets the guest"),
    spec("blk", AtLeast(2), NO_KEYS, true, "The first disk: BLK READ SECTOR, BLK WRITE SECTOR BYTE, BLK FLUSH"),
    spec("balloon", Exactly(1), NO_KEYS, false, "Pages of memory the hypervisor wants, and pages it has"),
    spec("time", Exactly(1), NO_KEYS, false, "Wall-clock time: seconds and microseconds"),
];

fn find(name: &[u8]) -> Option<&'static Spec> {
    SPECS.iter().find(|spec| name.eq_ignore_ascii_case(spec.name.as_bytes()))
}

/// Text of the wire inside an error reply: bounded, and printable whatever the peer sent.
struct Quoted<'a>(&'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}'", self.0[..self.0.len().min(64)].escape_ascii())
    }
}

/// Runs `command` and appends its reply. Breaks if the connection is to be closed.
pub(crate) fn dispatch<H: Host>(
    engine: &mut Engine<H>,
    command: &Command<'_>,
    replies: &mut Replies,
) -> ControlFlow<()> {
    let name = command.arg(0);
    let Some(spec) = find(name) else {
        replies.error(format_args!("ERR unknown command {}", Quoted(name)));
        return ControlFlow::Continue(());
    };
    if !spec.arity.admits(command.len()) {
        replies.error(format_args!("ERR wrong number of arguments for '{}' command", spec.name));
        return ControlFlow::Continue(());
    }
    if spec.name == "quit" {
        replies.simple("OK");
        return ControlFlow::Break(());
    }
    run(engine, spec.name, command, replies);
    ControlFlow::Continue(())
}

fn run<H: Host>(engine: &mut Engine<H>, name: &str, command: &Command<'_>, replies: &mut Replies) {
    match name {
        "get" => keys::get(&engine.store, command, replies),
        "set" => keys::set(&mut engine.store, command, replies),
        "incr" => keys::incr(&mut engine.store, command, replies),
        "del" => keys::del(&mut engine.store, command, replies),
        "exists" => keys::exists(&engine.store, command, replies),
        "mset" => keys::mset(&mut engine.store, command, replies),
        "mget" => keys::mget(&engine.store, command, replies),
        "dbsize" => replies.count(engine.store.len() as u64),
        "flushall" => {
            engine.store.clear();
            replies.simple("OK");
        }
        "digest" => keys::digest(&engine.store, command, replies),
        "ping" => server::ping(command, replies),
        "echo" => replies.bulk(command.arg(1)),
        "info" => server::info(engine, replies),
        "command" => server::command(command, replies),
        "config" => server::config(command, replies),
        "client" => server::client(command, replies),
        "select" => server::select(command, replies),
        "dirty" => machine::dirty(&mut engine.host, command, replies),
        "dirtystat" => machine::dirty_stat(&engine.host, replies),
        "blk" => machine::disk(&mut engine.host, command, replies),
        "balloon" => machine::balloon(&engine.host, replies),
        "clocks" => machine::clocks(&mut engine.host, replies),
        "time" => machine::time(&mut engine.host, replies),
        "counter" => replies.count(engine.host.counter()),
        "crash" | "triplefault" | "poweroff" | "reset" => machine::control(&mut engine.host, name, replies),
        other => unreachable!("{other} is in the table of commands but is not carried out"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::host::NoHost;
    use crate::session::Session;
    use std::string::{String, ToString};

    /// What a fresh server with a store of `limit` bytes answers.
    pub(crate) fn ask_with_limit(stream: &str, limit: usize) -> String {
        let mut engine = Engine::new(NoHost, limit);
        let mut session = Session::new();
        assert_eq!(session.feed(stream.as_bytes()), stream.len());
        session.advance(&mut engine);
        String::from_utf8(session.output().to_vec()).unwrap()
    }

    pub(crate) fn ask(stream: &str) -> String {
        ask_with_limit(stream, 1 << 20)
    }

    #[test]
    fn every_command_of_the_table_is_carried_out() {
        for spec in &SPECS {
            let least = match spec.arity {
                Exactly(count) | AtLeast(count) => count,
            };
            let words = std::iter::repeat_n(" 1", least - 1).collect::<String>();
            assert!(!ask(&(spec.name.to_string() + &words + "\r\n")).is_empty(), "{}", spec.name);
        }
    }

    #[test]
    fn unknown_commands_and_wrong_counts_are_named() {
        assert_eq!(ask("NO\x01PE 1\r\n"), "-ERR unknown command 'NO\\x01PE'\r\n");
        assert_eq!(ask("get\r\n"), "-ERR wrong number of arguments for 'get' command\r\n");
        assert_eq!(ask("SET a\r\n"), "-ERR wrong number of arguments for 'set' command\r\n");
    }
}
