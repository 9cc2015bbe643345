//! `test` and `[`.

use crate::error::Fault;
use crate::limits;

/// What a test can ask about files.
pub(super) trait FileFacts {
    /// Bytes of a file, or that it is a folder; nothing if there is neither.
    fn facts(&self, path: &str) -> Result<Option<FileFact>, Fault>;
}

/// A file or folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileFact {
    /// Its size, bytes.
    File(u64),
    Folder,
}

/// Whether the expression holds. Nothing at all does not.
pub(super) fn holds(arguments: &[String], files: &dyn FileFacts) -> Result<bool, Fault> {
    Test { arguments, at: 0, depth: 0, files }.any()
}

struct Test<'a> {
    arguments: &'a [String],
    at: usize,
    depth: usize,
    files: &'a dyn FileFacts,
}

impl<'a> Test<'a> {
    fn peek(&self, ahead: usize) -> Option<&'a str> {
        self.arguments.get(self.at + ahead).map(String::as_str)
    }

    fn take_if(&mut self, wanted: &str) -> bool {
        let is_next = self.peek(0) == Some(wanted);
        self.at += usize::from(is_next);
        is_next
    }

    fn any(&mut self) -> Result<bool, Fault> {
        let mut holds = self.all()?;
        while self.take_if("-o") {
            holds |= self.all()?;
        }
        Ok(holds)
    }

    fn all(&mut self) -> Result<bool, Fault> {
        let mut holds = self.one()?;
        while self.take_if("-a") {
            holds &= self.one()?;
        }
        Ok(holds)
    }

    fn one(&mut self) -> Result<bool, Fault> {
        let mut wanted = true;
        while self.take_if("!") {
            wanted = !wanted;
        }
        Ok(self.primary()? == wanted)
    }

    fn primary(&mut self) -> Result<bool, Fault> {
        let Some(first) = self.peek(0) else {
            return Ok(false);
        };
        if let (Some(operator), Some(second)) = (self.peek(1), self.peek(2))
            && let Some(holds) = compare(first, operator, second)
        {
            self.at += 3;
            return Ok(holds);
        }
        self.at += 1;
        match (first, self.peek(0)) {
            ("(", _) => self.parenthesis(),
            (operator, Some(operand)) if is_unary(operator) => {
                self.at += 1;
                self.unary(operator, operand)
            }
            (text, _) => Ok(!text.is_empty()),
        }
    }

    fn parenthesis(&mut self) -> Result<bool, Fault> {
        if self.depth == limits::NESTING_MAX {
            return Err(Fault::bound("nested tests", limits::NESTING_MAX));
        }
        self.depth += 1;
        let holds = self.any()?;
        self.depth -= 1;
        self.take_if(")");
        Ok(holds)
    }

    fn unary(&self, operator: &str, operand: &str) -> Result<bool, Fault> {
        Ok(match operator {
            "-n" => !operand.is_empty(),
            "-z" => operand.is_empty(),
            "-d" => self.files.facts(operand)? == Some(FileFact::Folder),
            "-f" => matches!(self.files.facts(operand)?, Some(FileFact::File(_))),
            "-s" => matches!(self.files.facts(operand)?, Some(FileFact::File(1..))),
            _ => self.files.facts(operand)?.is_some(),
        })
    }
}

fn is_unary(operator: &str) -> bool {
    matches!(operator, "-n" | "-z" | "-e" | "-f" | "-d" | "-s")
}

fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    let number = |text: &str| text.parse::<i64>().unwrap_or(0);
    Some(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        "<=" => left <= right,
        ">" => left > right,
        ">=" => left >= right,
        "-eq" => number(left) == number(right),
        "-ne" => number(left) != number(right),
        "-lt" => number(left) < number(right),
        "-le" => number(left) <= number(right),
        "-gt" => number(left) > number(right),
        "-ge" => number(left) >= number(right),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct OneFile;

    impl FileFacts for OneFile {
        fn facts(&self, path: &str) -> Result<Option<FileFact>, Fault> {
            Ok(match path {
                "/file" => Some(FileFact::File(1)),
                "/empty" => Some(FileFact::File(0)),
                "/folder" => Some(FileFact::Folder),
                _ => None,
            })
        }
    }

    fn is(expression: &[&str]) -> bool {
        let arguments: Vec<_> = expression.iter().map(|s| (*s).to_owned()).collect();
        holds(&arguments, &OneFile).unwrap()
    }

    #[test]
    fn strings_and_numbers_compare() {
        assert!(is(&["a", "=", "a"]) && !is(&["a", "==", "b"]) && is(&["a", "!=", "b"]));
        assert!(is(&["9", "-lt", "10"]) && !is(&["9", "<", "10"]));
        assert!(
            is(&["-n", "a"]) && is(&["-z", ""]) && !is(&["-n", ""]) && is(&["a"]) && !is(&[""]) && !is(&[])
        );
    }

    #[test]
    fn operands_that_look_like_operators_are_operands() {
        assert!(is(&["-n", "=", "-n"]) && is(&["", "=", ""]) && is(&["!", "=", "!"]) == is(&["!", "="]));
    }

    #[test]
    fn files_are_told_from_folders() {
        assert!(
            is(&["-f", "/file"])
                && !is(&["-f", "/folder"])
                && is(&["-d", "/folder"])
                && is(&["-e", "/folder"])
        );
        assert!(is(&["-s", "/file"]) && !is(&["-s", "/empty"]) && !is(&["-e", "/none"]));
    }

    #[test]
    fn and_binds_tighter_than_or_and_not_tightest() {
        assert!(is(&["a", "-o", "", "-a", ""]));
        assert!(!is(&["(", "a", "-o", "", ")", "-a", ""]));
        assert!(is(&["!", "", "-a", "!", "-z", "a"]));
    }

    #[test]
    fn parentheses_are_bounded() {
        let arguments = vec!["(".to_owned(); 100_000];
        assert!(matches!(holds(&arguments, &OneFile), Err(Fault::Bound { .. })));
    }
}
