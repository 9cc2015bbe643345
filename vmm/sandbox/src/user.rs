//! Becoming an unprivileged user.

use std::fs::File;
use std::io::Read;
use std::str::FromStr;

use rustix::process::{Gid, Uid, getppid, parent_process_death_signal, set_parent_process_death_signal};
use rustix::thread::{set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::error::{SandboxError, refused};
use crate::limits::DATABASE_BYTES_MAX;

/// A user and a group, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// Its only group.
    pub gid: u32,
}

impl FromStr for User {
    type Err = SandboxError;

    /// `NAME`, `UID` or `UID:GID`.
    fn from_str(text: &str) -> Result<Self, SandboxError> {
        Self::find(text, || read("/etc/passwd"))
    }
}

impl User {
    fn find(text: &str, database: impl FnOnce() -> std::io::Result<String>) -> Result<Self, SandboxError> {
        let wrong = |reason: String| SandboxError::User { name: text.to_owned(), reason };
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        if let (Ok(uid), Some(Ok(gid))) = (user.parse(), group.map(str::parse)) {
            return Self { uid, gid }.unprivileged().ok_or_else(|| wrong("is root".to_owned()));
        }
        if group.is_some() {
            return Err(wrong("is neither a name nor numbers".to_owned()));
        }
        let database = database().map_err(|e| wrong(format!("/etc/passwd cannot be read: {e}")))?;
        match (database.lines().find_map(|line| entry(line, user)), user.parse()) {
            (Some(found), _) => found.unprivileged().ok_or_else(|| wrong("is root".to_owned())),
            (None, Ok(uid)) => {
                Self { uid, gid: uid }.unprivileged().ok_or_else(|| wrong("is root".to_owned()))
            }
            (None, Err(_)) => Err(wrong("there is no such user".to_owned())),
        }
    }

    fn unprivileged(self) -> Option<Self> {
        // The largest number means "leave it as it is" to the kernel.
        (self.uid != 0 && self.uid != u32::MAX && self.gid != u32::MAX).then_some(self)
    }

    /// The calling thread becomes this user. Its capabilities go, unless they are to be `kept` for now.
    pub(crate) fn become_it(self, kept: bool) -> Result<(), SandboxError> {
        let (death, parent) = (parent_process_death_signal().ok().flatten(), getppid());
        set_keep_capabilities(kept).map_err(refused("change the user"))?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        set_thread_groups(&[gid]).map_err(refused("leave its groups; --user takes root"))?;
        set_thread_res_gid(gid, gid, gid).map_err(refused("change its group"))?;
        set_thread_res_uid(uid, uid, uid).map_err(refused("change the user"))?;
        // The kernel forgets it with a change of user.
        set_parent_process_death_signal(death).map_err(refused("end with its parent"))?;
        if death.is_some() && getppid() != parent {
            return Err(refused("end with its parent")(rustix::io::Errno::SRCH));
        }
        Ok(())
    }
}

/// The user of a line of passwd(5), if it is about `user`: a name or a number.
fn entry(line: &str, user: &str) -> Option<User> {
    let mut fields = line.split(':');
    let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    (name == user || uid == user).then_some(User { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
}

/// A static program has no name service; whoever keeps users elsewhere gives numbers.
fn read(path: &str) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(DATABASE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(text: &str) -> Result<User, String> {
        let database = || Ok("root:x:0:0::/root:/bin/sh\nbroken\nvm:x:991:992::/:/bin/false\n".to_owned());
        User::find(text, database).map_err(|e| e.to_string())
    }

    #[test]
    fn names_and_numbers_are_users() {
        assert_eq!(find("vm"), Ok(User { uid: 991, gid: 992 }));
        assert_eq!(find("991"), Ok(User { uid: 991, gid: 992 }));
        assert_eq!(find("5"), Ok(User { uid: 5, gid: 5 }));
        assert_eq!(find("5:6"), Ok(User { uid: 5, gid: 6 }));
    }

    #[test]
    fn root_and_nobody_at_all_are_not() {
        for text in ["root", "0", "0:5", "4294967295", "4294967295:1", "1:4294967295"] {
            assert!(find(text).unwrap_err().contains("is root"), "{text}");
        }
        for text in ["", "nobody-here", "vm:x", "1:x", "-1"] {
            assert!(find(text).unwrap_err().contains("--user"), "{text}");
        }
    }
}
