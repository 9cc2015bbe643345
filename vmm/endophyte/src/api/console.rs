//! The console's stream: the tape to the client, what the client types to the guest.

use std::sync::Arc;
use std::time::Duration;

use endophyte_api::{ConsoleInput, ConsoleOutput};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tonic::{Status, Streaming};

use super::ended;
use crate::desk::Desk;
use crate::limits::CONSOLE_CHUNK_BYTES;

/// A guest that does not read its console is offered the rest this often; a UART at 115200 baud takes 50 bytes meanwhile.
const TYPE_AGAIN: Duration = Duration::from_millis(5);

/// Between two messages. A guest writes byte by byte, and HTTP/2 clients take thousands of tiny frames for an attack.
const PACE: Duration = Duration::from_millis(5);

type ToClient = mpsc::Sender<Result<ConsoleOutput, Status>>;

/// Serves one client until it goes, or the process does.
pub(super) async fn serve_console(
    desk: Arc<Desk>,
    mut input: Streaming<ConsoleInput>,
    to_client: ToClient,
    end: watch::Receiver<bool>,
) {
    let Ok(Some(first)) = input.message().await else { return };
    let mut at = first.from_offset.unwrap_or_else(|| desk.tape.span().to);
    let typing = type_all(&desk, first, input, &to_client);
    let showing = show(&desk, &mut at, &to_client);
    let ended = tokio::select! {
        () = async { tokio::join!(typing, showing); } => false,
        () = ended(end) => true,
        () = to_client.closed() => false,
    };
    // The guest's last words, which the pace held back.
    if ended && desk.tape.span().to > at {
        let _ = to_client.try_send(read(&desk, &mut at));
    }
}

/// Sends the tape from an offset on.
async fn show(desk: &Desk, at: &mut u64, to_client: &ToClient) {
    let mut span = desk.tape.watch();
    while span.wait_for(|s| s.to > *at).await.is_ok() {
        let answer = read(desk, at);
        let failed = answer.is_err();
        if to_client.send(answer).await.is_err() || failed {
            return;
        }
        sleep(PACE).await;
    }
}

/// What the tape has from an offset on, as far as it goes into a message; the offset follows.
fn read(desk: &Desk, at: &mut u64) -> Result<ConsoleOutput, Status> {
    let left = desk.tape.span().to.saturating_sub(*at);
    let mut chunk = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(CONSOLE_CHUNK_BYTES)];
    match desk.tape.read(*at, &mut chunk) {
        // Said to be there and not there: the log was cut short by somebody else.
        Ok((_, 0)) => Err(Status::data_loss("the console log is shorter than what was written to it")),
        Ok((offset, n)) => {
            *at = offset + n as u64;
            chunk.truncate(n);
            Ok(ConsoleOutput { offset, bytes: chunk })
        }
        Err(error) => Err(Status::internal(format!("the console log cannot be read: {error}"))),
    }
}

/// Types what comes, until the client has no more to type or the guest is not here.
async fn type_all(
    desk: &Desk,
    first: ConsoleInput,
    mut input: Streaming<ConsoleInput>,
    to_client: &ToClient,
) {
    let mut next = Some(first);
    while let Some(message) = next {
        if let Err(status) = type_in(desk, &message.bytes).await {
            let _ = to_client.send(Err(status)).await;
            return;
        }
        next = input.message().await.unwrap_or_default();
    }
}

async fn type_in(desk: &Desk, mut bytes: &[u8]) -> Result<(), Status> {
    while !bytes.is_empty() {
        let machine = desk.machine();
        let machine = machine
            .ok_or_else(|| Status::failed_precondition("the guest does not run here; nobody to type to"))?;
        bytes = &bytes[machine.serial_input(bytes)..];
        drop(machine);
        if !bytes.is_empty() {
            sleep(TYPE_AGAIN).await;
        }
    }
    Ok(())
}
