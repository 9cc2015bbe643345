//! The command line containerd uses: Go's flags, one dash or two, value beside or after `=`.

use std::ffi::OsString;
use std::path::PathBuf;

/// What the shim is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Start,
    Delete,
    Serve,
    Version,
}

/// The command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) action: Action,
    /// containerd's namespace: `k8s.io` for pods.
    pub(crate) namespace: String,
    /// The container.
    pub(crate) id: String,
    /// containerd's own socket.
    pub(crate) address: String,
    /// The bundle: given to `delete`; otherwise it is the working directory.
    pub(crate) bundle: PathBuf,
    pub(crate) debug: bool,
}

/// A command line that containerd would not use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ArgsError {
    #[error("flag {0:?} is not one of containerd's; this program is started by containerd, not by hand")]
    Unknown(String),
    #[error("flag {0:?} has no value")]
    NoValue(String),
    #[error("action {0:?} is not one of start and delete")]
    Action(String),
    #[error("an argument is not UTF-8")]
    Encoding,
    #[error("-{0} is missing; this program is started by containerd, not by hand")]
    Missing(&'static str),
}

impl Args {
    pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut args = Self {
            action: Action::Serve,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            bundle: PathBuf::from("."),
            debug: false,
        };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let word = word.into_string().map_err(|_| ArgsError::Encoding)?;
            match word.strip_prefix("--").or_else(|| word.strip_prefix('-')) {
                Some(flag) => args.take(flag, &mut words)?,
                None => args.action = action(&word)?,
            }
        }
        args.checked()
    }

    fn take(&mut self, flag: &str, words: &mut impl Iterator<Item = OsString>) -> Result<(), ArgsError> {
        let (name, beside) = flag.split_once('=').map_or((flag, None), |(n, v)| (n, Some(v.to_owned())));
        let mut value = || match beside.clone() {
            Some(value) => Ok(value),
            None => {
                let next = words.next().ok_or_else(|| ArgsError::NoValue(flag.to_owned()))?;
                next.into_string().map_err(|_| ArgsError::Encoding)
            }
        };
        match name {
            "namespace" => self.namespace = value()?,
            "id" => self.id = value()?,
            "address" => self.address = value()?,
            "bundle" => self.bundle = value()?.into(),
            // Events go over ttrpc and the address is computed.
            "publish-binary" | "socket" => drop(value()?),
            "debug" => self.debug = beside.as_deref() != Some("false"),
            "v" | "version" => self.action = Action::Version,
            _ => return Err(ArgsError::Unknown(flag.to_owned())),
        }
        Ok(())
    }

    fn checked(self) -> Result<Self, ArgsError> {
        let needed = [("namespace", &self.namespace), ("id", &self.id), ("address", &self.address)];
        let missing = needed.into_iter().find(|(_, value)| value.is_empty()).map(|(name, _)| name);
        match missing {
            Some(name) if self.action != Action::Version => Err(ArgsError::Missing(name)),
            _ => Ok(self),
        }
    }
}

fn action(word: &str) -> Result<Action, ArgsError> {
    match word {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        other => Err(ArgsError::Action(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        Args::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn containerds_own_line_is_understood() {
        let line =
            "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id abc -debug start";
        let args = parse(line).unwrap();
        assert_eq!((args.action, args.id.as_str(), args.debug), (Action::Start, "abc", true));
        let args = parse("--namespace=k8s.io -address=/a -id=x -bundle /b delete").unwrap();
        assert_eq!((args.action, args.bundle), (Action::Delete, PathBuf::from("/b")));
    }

    #[test]
    fn what_containerd_would_not_say_is_refused() {
        assert_eq!(parse("-id x start"), Err(ArgsError::Missing("namespace")));
        assert_eq!(parse("-frobnicate"), Err(ArgsError::Unknown("frobnicate".into())));
        assert_eq!(parse("-id"), Err(ArgsError::NoValue("id".into())));
        assert_eq!(parse("restart"), Err(ArgsError::Action("restart".into())));
        assert_eq!(parse("-v").unwrap().action, Action::Version);
    }
}
