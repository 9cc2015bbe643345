//! Running outside programs: one place that says which command failed and what it said.

use std::process::{Command, Stdio};

use crate::ImageError;

/// Runs a command to its end and returns its standard output.
pub(crate) fn run(command: &mut Command) -> Result<String, ImageError> {
    let line = command_line(command);
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|source| ImageError::Start { command: line.clone(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ImageError::Command { command: line, status: output.status.to_string(), stderr })
}

fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_is_quoted_with_its_words() {
        let error = run(Command::new("ls").arg("/no/such/folder")).unwrap_err().to_string();
        assert!(error.contains("ls /no/such/folder") && error.contains("cannot access"), "{error}");
    }
}
