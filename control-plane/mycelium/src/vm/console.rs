//! Sitting at a guest's serial console, and reading what it has said.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use endophyte_api::ConsoleInput;
use tokio_stream::wrappers::ReceiverStream;

use super::LogsArgs;
use super::target::{Target, here};
use crate::output::{plain, say};

/// Copies a file of the VM's run folder to standard output, and what is added to it if asked.
pub(super) async fn print_file(args: &LogsArgs, file: &str) -> Result<()> {
    let vm = here(&args.asking, &args.name).await?;
    let path = Path::new(&vm.folder).join("run").join(file);
    if vm.role == "run" && !path.exists() {
        bail!(
            "VM {} runs without protection, and has no {file}; `mycelium vm logs` and `inspect` say what there is",
            vm.name
        );
    }
    let mut file = std::fs::File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut chunk = vec![0; 1 << 16];
    loop {
        match file.read(&mut chunk)? {
            0 if !args.follow => return Ok(()),
            0 => tokio::time::sleep(Duration::from_millis(100)).await,
            n => {
                if std::io::stdout().lock().write_all(&chunk[..n]).is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// Ctrl-], as telnet has it.
const LEAVE: u8 = 0x1d;

pub(super) async fn console(target: &Target) -> Result<()> {
    let mut client = target.process().await?.client;
    let (typed, input) = tokio::sync::mpsc::channel(16);
    typed.send(ConsoleInput { from_offset: Some(0), bytes: Vec::new() }).await?;
    let _raw = RawTerminal::enter();
    std::thread::spawn(move || type_in(&typed));
    let output = client.console(ReceiverStream::new(input)).await.map_err(|s| plain(&s))?;
    let mut output = output.into_inner();
    while let Some(said) = output.message().await.map_err(|s| plain(&s))? {
        let mut out = std::io::stdout().lock();
        if out.write_all(&said.bytes).and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    Ok(())
}

/// Passes keys on until the leaving one or the end of input; then the console's input ends, and with it the call.
fn type_in(typed: &tokio::sync::mpsc::Sender<ConsoleInput>) {
    let mut chunk = [0; 256];
    while let Ok(n @ 1..) = std::io::stdin().read(&mut chunk) {
        let keys = &chunk[..n];
        let until = keys.iter().position(|key| *key == LEAVE).unwrap_or(n);
        let input = ConsoleInput { from_offset: None, bytes: keys[..until].to_vec() };
        if typed.blocking_send(input).is_err() || until < n {
            break;
        }
    }
    RawTerminal::leave();
    std::process::exit(0);
}

/// The terminal without its own line editing; put back when dropped.
struct RawTerminal;

static COOKED: std::sync::Mutex<Option<rustix::termios::Termios>> = std::sync::Mutex::new(None);

impl RawTerminal {
    fn enter() -> Self {
        let stdin = std::io::stdin();
        if let Ok(cooked) = rustix::termios::tcgetattr(&stdin) {
            let mut raw = cooked.clone();
            raw.make_raw();
            let _ = rustix::termios::tcsetattr(&stdin, rustix::termios::OptionalActions::Now, &raw);
            *COOKED.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(cooked);
        }
        say("sitting at the console; Ctrl-] leaves\r");
        Self
    }

    fn leave() {
        if let Some(cooked) = COOKED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            let now = rustix::termios::OptionalActions::Now;
            let _ = rustix::termios::tcsetattr(std::io::stdin(), now, &cooked);
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        Self::leave();
    }
}
