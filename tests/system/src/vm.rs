//! What tests ask a VM's process.

use std::path::Path;
use std::time::Duration;

use endophyte_api::{ConsoleInput, SnapshotProgress, SnapshotRequest, VmClient};
use tokio::time::timeout;
use tokio_stream::{StreamExt, once, pending};
use tonic::Status;

/// Lines of a console that are shown when it does not say what was waited for.
const LINES_SHOWN: usize = 40;

/// Reads the console from an offset on, until it is as `wanted`, which is called `what`.
///
/// # Panics
/// When it is not within `patience`, or the console ends.
pub async fn console_until(
    api: &mut VmClient,
    from: u64,
    patience: Duration,
    what: &str,
    wanted: impl Fn(&str) -> bool,
) -> String {
    let first = ConsoleInput { from_offset: Some(from), bytes: Vec::new() };
    // A client that types nothing more, and does not hang up either.
    let input = once(first).chain(pending());
    let mut text = String::new();
    let reading = async {
        let mut output = api.console(input).await.expect("the process serves its console").into_inner();
        while !wanted(&text) {
            let chunk = output.next().await.expect("the console goes on").expect("it can be read");
            text += &String::from_utf8_lossy(&chunk.bytes);
        }
    };
    let read = timeout(patience, reading).await;
    let end: Vec<&str> = text.lines().rev().take(LINES_SHOWN).collect();
    assert!(read.is_ok(), "no {what:?} on the console; its end, newest first: {end:?}");
    text
}

/// Takes a snapshot; the last message.
///
/// # Errors
/// What the process answers.
///
/// # Panics
/// When the path is no text.
pub async fn save(api: &mut VmClient, path: &Path, stop: bool) -> Result<SnapshotProgress, Status> {
    let request = SnapshotRequest { path: path.to_str().expect("a path of a test is text").to_owned(), stop };
    let mut progress = api.snapshot(request).await?.into_inner();
    let mut last = SnapshotProgress::default();
    while let Some(step) = progress.next().await {
        last = step?;
    }
    Ok(last)
}
