//! A command's options and what is left of its arguments.

/// Options by name with their values, and the arguments that are none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) given: Vec<(String, Option<String>)>,
    pub(super) rest: Vec<String>,
}

impl Options {
    /// `takes_value` names those (without dashes) whose value may be the next argument.
    pub(super) fn split(arguments: &[String], takes_value: &[&str]) -> Self {
        let (mut split, mut arguments) = (Self::default(), arguments.iter());
        while let Some(argument) = arguments.next() {
            let Some(option) = argument.strip_prefix('-').filter(|o| !o.is_empty()) else {
                split.rest.push(argument.clone());
                continue;
            };
            let option = option.strip_prefix('-').unwrap_or(option);
            split.given.push(match option.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None if takes_value.contains(&option) => (option.to_owned(), arguments.next().cloned()),
                None => (option.to_owned(), None),
            });
        }
        split
    }

    pub(super) fn has(&self, names: &[&str]) -> bool {
        self.given.iter().any(|(name, _)| names.contains(&name.as_str()))
    }

    pub(super) fn value(&self, names: &[&str]) -> Option<&str> {
        self.given.iter().filter(|(name, _)| names.contains(&name.as_str())).find_map(|(_, v)| v.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_follow_an_equals_sign_or_stand_next() {
        let arguments = ["T", "--class", "a", "--unrestricted", "--id=b", "-s", "x"].map(str::to_owned);
        let options = Options::split(&arguments, &["class", "id"]);
        assert_eq!(options.rest, ["T", "x"]);
        assert_eq!(options.value(&["id"]), Some("b"));
        assert_eq!(options.value(&["class"]), Some("a"));
        assert!(options.has(&["unrestricted"]) && options.has(&["s", "set"]) && !options.has(&["u"]));
    }
}
