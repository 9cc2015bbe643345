//! QEMU's machine protocol, as much as saving a guest needs.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::limits::PATIENCE;
use crate::stop::Stop;

/// A longer answer is none of the few that are expected.
const LINE_BYTES_MAX: u64 = 256 * 1024;

/// Bytes a second, so that QEMU's own limit is none.
pub(crate) const NO_LIMIT: u64 = 100_000_000_000;

/// A connection that takes orders.
pub(crate) struct Qmp(BufReader<UnixStream>);

impl Qmp {
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("QEMU does not listen")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self(BufReader::new(stream));
        qmp.line()?;
        qmp.order("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Saves the running guest. It is saved as one that runs, so it goes on by itself where it is restored; it stands still here.
    pub(super) fn migrate_to_file(&mut self, file: &Path, stop: &Stop) -> Result<()> {
        self.order("migrate-set-parameters", &json!({ "max-bandwidth": NO_LIMIT }))?;
        self.order("migrate", &json!({ "uri": format!("exec:cat > {}", quoted(file)?) }))?;
        self.finish_migration(stop, Duration::from_millis(20))
    }

    /// Waits for the end of a migration, with looks so far apart.
    pub(crate) fn finish_migration(&mut self, stop: &Stop, between: Duration) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.order("query-migrate", &json!({}))?["status"].as_str() {
                Some("completed") => return Ok(()),
                Some(failed @ ("failed" | "cancelled")) => bail!("QEMU's migration has {failed}"),
                _ => stop.pause(between)?,
            }
        }
        bail!("QEMU did not finish within {} s", PATIENCE.as_secs())
    }

    pub(crate) fn order(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let order = json!({ "execute": command, "arguments": arguments });
        writeln!(self.0.get_mut(), "{order}")?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {}", error["desc"].as_str().unwrap_or_default());
            }
            // Events come in between.
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        (&mut self.0).take(LINE_BYTES_MAX).read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("QEMU sent {line:?}"))
    }
}

/// A path as one word of the shell that QEMU starts.
fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| !text.contains('\''));
    let text = text.with_context(|| format!("{} cannot be quoted for a shell", path.display()))?;
    Ok(format!("'{text}'"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn paths_are_one_word_or_refused() {
        assert_eq!(quoted(Path::new("/a b/$c")).unwrap(), "'/a b/$c'");
        assert!(quoted(Path::new("/it's")).is_err());
    }

    #[test]
    fn an_answer_is_found_among_events_and_a_refusal_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            writeln!(stream, r#"{{"QMP":{{}}}}"#).unwrap();
            for answer in [
                r#"{"return":{}}"#,
                "{\"event\":\"STOP\"}\n{\"return\":{\"status\":\"x\"}}",
                r#"{"error":{"desc":"no"}}"#,
            ] {
                lines.next();
                writeln!(stream, "{answer}").unwrap();
            }
        });
        let mut qmp = Qmp::connect(&socket).unwrap();
        assert_eq!(qmp.order("query-migrate", &json!({})).unwrap()["status"], "x");
        assert!(qmp.order("quit", &json!({})).unwrap_err().to_string().contains("quit: no"));
        serving.join().unwrap();
    }
}
