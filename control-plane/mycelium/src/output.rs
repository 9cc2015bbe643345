//! How answers are shown, and how the daemon is reached.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use mycelium_api::NodeClient;
use serde::Serialize;
use tonic::Status;

/// Which daemon to ask, and how to show what it says.
#[derive(Clone, Debug, Args)]
pub(crate) struct Asking {
    /// The daemon's socket.
    #[arg(long, value_name = "PATH", default_value = mycelium_api::SOCKET, global = true, env = "MYCELIUM_SOCKET")]
    pub(crate) socket: PathBuf,
    /// One JSON object instead of words.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl Asking {
    /// Connects to the daemon.
    pub(crate) async fn daemon(&self) -> Result<NodeClient> {
        mycelium_api::connect(&self.socket).await.map_err(|_| {
            anyhow!(
                "no daemon answers on {}; start one (`mycelium node run`), or name its socket with --socket",
                self.socket.display()
            )
        })
    }

    /// Shows an answer: as JSON if asked, else as `words`.
    pub(crate) fn show<T: Serialize>(&self, answer: &T, words: impl FnOnce(&T) -> String) -> Result<()> {
        let text = if self.json { serde_json::to_string(answer)? } else { words(answer) };
        say(text.trim_end());
        Ok(())
    }
}

/// A line on standard output; a reader that is gone is no error.
pub(crate) fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// The daemon's own words, without gRPC's around them.
pub(crate) fn plain(status: &Status) -> anyhow::Error {
    anyhow!("{}", status.message().to_owned())
}

/// Runs a question to its end.
pub(crate) fn block_on<T>(question: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(question)
}

/// Rows under headings, columns as wide as they need to be.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let head = line(&mut headings.iter().copied());
    let body = rows.iter().map(|row| line(&mut row.iter().map(String::as_str)));
    std::iter::once(head).chain(body).collect::<Vec<_>>().join("\n")
}

/// Bytes for people.
pub(crate) fn mib(bytes: u64) -> String {
    if bytes >= 10 << 30 { format!("{} GiB", bytes >> 30) } else { format!("{} MiB", bytes >> 20) }
}

/// A key's beginning: enough to tell nodes apart.
pub(crate) fn short(key: &str) -> String {
    key.chars().take(8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need_to_be() {
        let rows = vec![vec!["a".into(), "x".into()], vec!["long".into(), "y".into()]];
        assert_eq!(table(&["n", "v"], &rows), "n     v\na     x\nlong  y");
    }
}
