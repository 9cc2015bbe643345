//! GRUB's names of devices and files, and the search for a device.

use super::machine::Machine;
use super::options::Options;
use super::test::{FileFact, FileFacts};
use crate::error::Fault;
use crate::limits;
use crate::menu::Place;

impl Machine<'_> {
    /// Where `name` is: `(device)/path`, or `/path` on the device `$root` names.
    pub(super) fn place(&self, name: &str) -> Place {
        let (device, path) = match name.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            Some((device, path)) => (device.to_owned(), path),
            None => (self.state.get("root"), name),
        };
        let device = device.trim_matches(['(', ')']).to_owned();
        let volume = match device.is_empty() {
            true => Some(self.home),
            false => self.volumes.by_device(&device),
        };
        Place { volume, device, path: format!("/{}", path.trim_start_matches('/')) }
    }

    /// A small file's bytes; nothing if it is not there.
    pub(super) fn small_file(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, Fault> {
        self.left.look()?;
        let place = self.place(name);
        match place.volume.and_then(|volume| self.volumes.files(volume)) {
            Some(files) => Ok(files.read(&place.path, most)?),
            None => Ok(None),
        }
    }

    /// `search`, and its older forms `search.fs_uuid` and the like.
    pub(super) fn search(&mut self, command: &str, arguments: &[String]) -> Result<bool, Fault> {
        let options =
            Options::split(arguments, &["hint", "hint-bios", "hint-efi", "hint-baremetal", "hint-ieee1275"]);
        let Some(wanted) = options.rest.first() else {
            return Ok(false);
        };
        let (by, variable) = match command.strip_prefix("search.") {
            Some(by) => (by, options.rest.get(1).map_or("root", String::as_str)),
            None => (search_by(&options), options.value(&["set", "s"]).unwrap_or("root")),
        };
        let Some(found) = self.search_for(by, wanted)? else {
            tracing::debug!(by, wanted, "a search found no partition");
            return Ok(false);
        };
        self.state.set(variable, &self.volumes.0[found].device())?;
        Ok(true)
    }

    fn search_for(&self, by: &str, wanted: &str) -> Result<Option<usize>, Fault> {
        Ok(match by {
            "fs_uuid" => self.volumes.by_uuid(wanted),
            "fs_label" => self.volumes.by_label(wanted),
            _ => {
                self.left.look()?;
                (0..self.volumes.0.len()).find(|volume| self.volumes.has(*volume, wanted))
            }
        })
    }
}

fn search_by(options: &Options) -> &'static str {
    if options.has(&["fs-uuid", "u"]) {
        "fs_uuid"
    } else if options.has(&["label", "l", "fs-label"]) {
        "fs_label"
    } else {
        "file"
    }
}

impl FileFacts for Machine<'_> {
    fn facts(&self, path: &str) -> Result<Option<FileFact>, Fault> {
        self.left.look()?;
        let place = self.place(path);
        let Some(files) = place.volume.and_then(|volume| self.volumes.files(volume)) else {
            return Ok(None);
        };
        let found = files.find(&place.path)?;
        Ok(found.map(|f| if f.is_folder { FileFact::Folder } else { FileFact::File(f.bytes) }))
    }
}

/// Joins the arguments of `linux` to a command line, quoted as GRUB does for the kernel.
pub(super) fn command_line(arguments: &[String]) -> Result<String, Fault> {
    let line = arguments.iter().map(|a| quoted(a)).collect::<Vec<_>>().join(" ");
    if line.len() > limits::CMDLINE_BYTES_MAX {
        return Err(Fault::bound("bytes of a command line", limits::CMDLINE_BYTES_MAX));
    }
    Ok(line)
}

fn quoted(argument: &str) -> String {
    let escaped: String = argument
        .chars()
        .flat_map(|c| matches!(c, '"' | '\'' | '\\').then_some('\\').into_iter().chain([c]))
        .collect();
    if argument.contains(' ') { format!("\"{escaped}\"") } else { escaped }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_with_blanks_are_quoted_for_the_kernel() {
        let arguments = ["root=/dev/vda1", "a=b c", "d=\"e\""].map(str::to_owned);
        assert_eq!(command_line(&arguments).unwrap(), r#"root=/dev/vda1 "a=b c" d=\"e\""#);
    }
}
