//! Variables: those GRUB starts with, and those kept in a `grubenv` file.

use std::collections::BTreeMap;

use super::parser::Script;
use crate::error::Fault;
use crate::limits;

/// What GRUB 2.06 and later say they can; scripts ask before they use it.
const FEATURES: [&str; 8] = [
    "feature_200_final",
    "feature_all_video_module",
    "feature_chainloader_bpb",
    "feature_default_font_path",
    "feature_menuentry_id",
    "feature_menuentry_options",
    "feature_platform_search_hint",
    "feature_timeout_style",
];

/// Variables, functions and the arguments of what runs.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    variables: BTreeMap<String, String>,
    /// Of all names and values.
    bytes: usize,
    pub(super) functions: BTreeMap<String, Script>,
    pub(super) arguments: Vec<String>,
}

impl State {
    /// As GRUB for BIOS starts with its prefix on `device`: firmware entries of UEFI are then not offered.
    pub(super) fn new(device: &str, config: &str) -> Self {
        let folder = config.rsplit_once('/').map_or("", |(folder, _)| folder);
        let own = [
            ("root", device.to_owned()),
            ("prefix", format!("({device}){folder}")),
            ("config_directory", format!("({device}){folder}")),
            ("config_file", format!("({device}){config}")),
            ("cmdpath", format!("({device})")),
            ("grub_platform", "pc".to_owned()),
            ("grub_cpu", "i386".to_owned()),
        ];
        let features = FEATURES.iter().map(|name| (*name, "y".to_owned()));
        let variables =
            own.into_iter().chain(features).map(|(name, value)| (name.to_owned(), value)).collect();
        Self { variables, ..Self::default() }
    }

    /// A copy with other arguments.
    pub(super) fn with_arguments(&self, arguments: Vec<String>) -> Self {
        Self { arguments, ..self.clone() }
    }

    /// A variable's value; one that is not set is empty.
    pub(super) fn get(&self, name: &str) -> String {
        match name.parse::<usize>() {
            Ok(0) => "grub".to_owned(),
            Ok(number) => self.arguments.get(number - 1).cloned().unwrap_or_default(),
            Err(_) => self.variables.get(name).cloned().unwrap_or_default(),
        }
    }

    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), Fault> {
        if value.len() > limits::WORD_BYTES_MAX {
            return Err(Fault::bound("bytes of a variable", limits::WORD_BYTES_MAX));
        }
        if self.variables.len() >= limits::NAMES_MAX && !self.variables.contains_key(name) {
            return Err(Fault::bound("variables", limits::NAMES_MAX));
        }
        self.unset(name);
        self.bytes += name.len() + value.len();
        if self.bytes > limits::VARIABLES_BYTES_MAX {
            return Err(Fault::bound("bytes of variables", limits::VARIABLES_BYTES_MAX));
        }
        self.variables.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    pub(super) fn unset(&mut self, name: &str) {
        if let Some(value) = self.variables.remove(name) {
            self.bytes = self.bytes.saturating_sub(name.len() + value.len());
        }
    }

    pub(super) fn define(&mut self, name: &str, body: &Script) -> Result<(), Fault> {
        if self.functions.len() >= limits::NAMES_MAX {
            return Err(Fault::bound("functions", limits::NAMES_MAX));
        }
        self.functions.insert(name.to_owned(), Script::clone(body));
        Ok(())
    }
}

/// Names and values of a `grubenv` file: a line each, `\` before what would end it, filled up with `#`.
pub(super) fn parse_grubenv(bytes: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(bytes);
    let (mut lines, mut line, mut escaped) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        match c {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            '\n' if !escaped => lines.push(std::mem::take(&mut line)),
            c => line.push(c),
        }
        escaped = false;
    }
    let set = lines.iter().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    set.take(limits::NAMES_MAX).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_file_is_read_past_its_filling() {
        let file = b"# GRUB Environment Block\nsaved_entry=a>b\nkernelopts=root=x \\\\ ro\n########";
        let pairs = [("saved_entry", "a>b"), ("kernelopts", "root=x \\ ro")];
        assert_eq!(parse_grubenv(file), pairs.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn positional_arguments_count_from_one() {
        let mut state = State::new("hd0,gpt1", "/boot/grub/grub.cfg");
        state.arguments = vec!["a".to_owned()];
        assert_eq!((state.get("1"), state.get("2")), ("a".to_owned(), String::new()));
        assert_eq!(state.get("prefix"), "(hd0,gpt1)/boot/grub");
    }

    #[test]
    fn variables_are_bounded() {
        let mut state = State::default();
        for i in 0..limits::NAMES_MAX {
            state.set(&format!("v{i}"), "").unwrap();
        }
        assert!(state.set("one_more", "").is_err());
        assert!(state.set("v1", "again").is_ok());
    }
}
