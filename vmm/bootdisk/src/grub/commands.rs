//! The commands that matter for what is booted.

use super::device::command_line;
use super::env::parse_grubenv;
use super::machine::{Flow, Machine, Offer, Offered};
use super::options::Options;
use super::parser::{Script, parse};
use super::test;
use crate::bls;
use crate::error::Fault;
use crate::limits;
use crate::menu::Boot;

impl Machine<'_> {
    /// Carries out a command. Unknown ones succeed: they set up screens and fonts, and what they were is of no use here.
    pub(super) fn builtin(
        &mut self,
        name: &str,
        arguments: &[String],
        block: Option<&Script>,
    ) -> Result<Flow, Fault> {
        let success = match name {
            "set" => self.assign(arguments.first().map_or("", String::as_str))?,
            "unset" => self.unset(arguments),
            "load_env" => self.load_env(arguments)?,
            "test" => test::holds(arguments, self)?,
            "[" => test::holds(arguments.strip_suffix(&["]".to_owned()]).unwrap_or(arguments), self)?,
            "false" | "keystatus" | "fwsetup" | "sleep" => name == "sleep",
            "search" | "search.file" | "search.fs_label" | "search.fs_uuid" => {
                self.search(name, arguments)?
            }
            "linux" | "linux16" | "linuxefi" => self.linux(arguments)?,
            "initrd" | "initrd16" | "initrdefi" => self.initrd(arguments)?,
            "menuentry" | "submenu" => self.menu_entry(name, arguments, block)?,
            "blscfg" => self.blscfg()?,
            "source" | "." | "configfile" | "eval" | "break" | "continue" | "return" | "exit" => {
                return self.jump(name, arguments);
            }
            _ if name.contains('=') => self.assign(name)?,
            _ => {
                tracing::debug!(name, "a GRUB command was taken as done");
                true
            }
        };
        self.finish(success)
    }

    /// What leads elsewhere in the script, or to another.
    fn jump(&mut self, name: &str, arguments: &[String]) -> Result<Flow, Fault> {
        match name {
            "source" | "." => self.include(arguments),
            "configfile" => self.take_over(arguments),
            "eval" => {
                self.left.look()?;
                let script = parse(&arguments.join(" "))?;
                self.run(&script)
            }
            "break" => Ok(Flow::Break),
            "continue" => Ok(Flow::Continue),
            "exit" => Ok(Flow::Stop),
            _ => {
                self.finish(arguments.first().is_none_or(|status| status == "0"))?;
                Ok(Flow::Return)
            }
        }
    }

    fn assign(&mut self, assignment: &str) -> Result<bool, Fault> {
        if let Some((name, value)) = assignment.split_once('=') {
            self.state.set(name, value)?;
        }
        Ok(true)
    }

    fn unset(&mut self, names: &[String]) -> bool {
        for name in names {
            self.state.unset(name);
        }
        true
    }

    /// Takes all variables of the file, or those named.
    fn load_env(&mut self, arguments: &[String]) -> Result<bool, Fault> {
        let options = Options::split(arguments, &["file", "f"]);
        let default = format!("{}/grubenv", self.state.get("prefix"));
        let file = options.value(&["file", "f"]).unwrap_or(&default);
        let Some(bytes) = self.small_file(file, limits::SMALL_FILE_BYTES_MAX)? else {
            return Ok(false);
        };
        for (name, value) in parse_grubenv(&bytes) {
            if options.rest.is_empty() || options.rest.contains(&name) {
                self.state.set(&name, &value)?;
            }
        }
        Ok(true)
    }

    fn linux(&mut self, arguments: &[String]) -> Result<bool, Fault> {
        let Some((kernel, rest)) = arguments.split_first() else {
            return Ok(false);
        };
        // Loading a kernel drops the initrds of the one before, as in GRUB.
        self.boot =
            Boot { kernel: Some(self.place(kernel)), initrds: Vec::new(), cmdline: command_line(rest)? };
        Ok(true)
    }

    fn initrd(&mut self, arguments: &[String]) -> Result<bool, Fault> {
        if arguments.len() > limits::INITRDS_MAX {
            return Err(Fault::bound("initrds", limits::INITRDS_MAX));
        }
        self.boot.initrds = arguments.iter().map(|file| self.place(file)).collect();
        Ok(true)
    }

    fn menu_entry(
        &mut self,
        command: &str,
        arguments: &[String],
        block: Option<&Script>,
    ) -> Result<bool, Fault> {
        let options = Options::split(arguments, &["class", "users", "hotkey", "id", "source"]);
        let (Some(title), Some(body)) = (options.rest.first().cloned(), block) else {
            return Ok(false);
        };
        let (body, id) = (Script::clone(body), options.value(&["id"]).map(str::to_owned));
        let what = match command {
            "submenu" => Offered::Submenu(body, options.rest),
            _ => Offered::Entry(body, options.rest),
        };
        self.offer(Offer { title, id, what })?;
        Ok(true)
    }

    /// The boot-loader-spec entries of the volume `$root` names.
    fn blscfg(&mut self) -> Result<bool, Fault> {
        self.left.look()?;
        let device = self.place("/");
        let Some(volume) = device.volume else {
            return Ok(false);
        };
        let state = self.state.clone();
        for (item, boot) in
            bls::read(self.volumes, volume, &|name| bls_value(&state.get(name), name, &state))?
        {
            let id = item.ids.into_iter().next();
            self.offer(Offer { title: item.title, id, what: Offered::Known(boot) })?;
        }
        Ok(true)
    }

    fn script(&self, arguments: &[String]) -> Result<Option<Script>, Fault> {
        let Some(bytes) = arguments.first().map(|name| self.small_file(name, limits::SCRIPT_BYTES_MAX))
        else {
            return Ok(None);
        };
        bytes?.map(|bytes| parse(&String::from_utf8_lossy(&bytes))).transpose()
    }

    fn include(&mut self, arguments: &[String]) -> Result<Flow, Fault> {
        match self.script(arguments)? {
            Some(script) => Ok(match self.run(&script)? {
                Flow::Return => Flow::Next,
                flow => flow,
            }),
            None => self.finish(false),
        }
    }

    /// Another configuration's entries replace those offered so far.
    fn take_over(&mut self, arguments: &[String]) -> Result<Flow, Fault> {
        let Some(script) = self.script(arguments)? else {
            return self.finish(false);
        };
        self.offers.clear();
        self.run(&script)?;
        Ok(Flow::Stop)
    }
}

/// Fedora's `blscfg` takes `default_kernelopts` where `kernelopts` is not set.
fn bls_value(value: &str, name: &str, state: &super::env::State) -> String {
    match (name, value) {
        ("kernelopts", "") => state.get("default_kernelopts"),
        _ => value.to_owned(),
    }
}
