//! The agent as a process: what a client sees over TCP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, Stdio};

/// A running agent, ended with the test.
struct Agent {
    child: Child,
    address: String,
}

impl Agent {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_guest-agent"))
            .arg("127.0.0.1:0")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the agent starts");
        let lines = BufReader::new(child.stdout.take().expect("its output is piped")).lines();
        let mut lines = lines.map(|line| line.expect("its output is text"));
        let ready =
            lines.find_map(|line| line.strip_prefix("guest-agent: ready address=").map(str::to_owned));
        // The agent goes on printing ticks: somebody must read them.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address: ready.expect("the agent says where it listens") }
    }

    /// Everything the agent answers to `stream`.
    fn ask(&self, stream: &[u8]) -> Vec<u8> {
        let socket = TcpStream::connect(&self.address).expect("the agent accepts");
        std::thread::scope(|scope| {
            // Written from beside: a peer that does not read while it writes could wait for itself.
            scope.spawn(|| {
                (&socket).write_all(stream).expect("the agent reads");
                socket.shutdown(Shutdown::Write).expect("the socket is open");
            });
            let mut answer = Vec::new();
            (&socket).read_to_end(&mut answer).expect("the agent answers and closes");
            answer
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn answers_over_tcp_and_keeps_its_state_between_connections() {
    let agent = Agent::start();
    assert_eq!(agent.ask(b"SET a 1\r\nINCR a\r\n"), b"+OK\r\n:2\r\n");
    assert_eq!(agent.ask(b"GET a\r\nQUIT\r\nGET a\r\n"), b"$1\r\n2\r\n+OK\r\n");
}

#[test]
fn a_long_pipeline_is_answered_in_full() {
    let agent = Agent::start();
    let answer = agent.ask(&b"INCR n\r\n".repeat(50_000));
    assert!(answer.ends_with(b":49999\r\n:50000\r\n"));
    assert_eq!(answer.iter().filter(|byte| **byte == b':').count(), 50_000);
}

#[test]
fn clocks_run_forward_and_a_process_may_not_end_the_machine() {
    let agent = Agent::start();
    let answer = String::from_utf8(agent.ask(b"CLOCKS\r\n")).expect("text");
    let numbers: Vec<u64> =
        answer.split_whitespace().filter_map(|word| word.strip_prefix(':')?.parse().ok()).collect();
    assert_eq!(numbers.len(), 4, "{answer}");
    assert!(numbers[0] > 0 && numbers[3] == 0, "{answer}");
    assert_eq!(agent.ask(b"POWEROFF\r\n"), b"-ERR not available in this guest\r\n");
}

#[test]
fn dirtying_counts_and_checks() {
    let agent = Agent::start();
    assert_eq!(agent.ask(b"DIRTY scattered 64\r\n"), b"+OK\r\n");
    assert_eq!(agent.ask(b"DIRTY STOP\r\nDIRTY CHECK\r\n"), b"+OK\r\n+OK\r\n");
}
