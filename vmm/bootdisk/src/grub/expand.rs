//! Words to arguments.

use super::lexer::{Part, Word};
use crate::error::Fault;
use crate::limits;

/// A word's arguments: none if it is an unquoted empty variable, several if such a variable has blanks in it.
pub(super) fn expand(word: &Word, value: &dyn Fn(&str) -> String) -> Result<Vec<String>, Fault> {
    let mut fields = Fields::default();
    for part in &word.0 {
        match part {
            Part::Text { text, .. } => fields.append(text)?,
            Part::Variable { name, quoted: true } => fields.append(&value(name))?,
            Part::Variable { name, quoted: false } => fields.append_split(&value(name))?,
        }
    }
    fields.done.extend(fields.open);
    Ok(fields.done)
}

#[derive(Default)]
struct Fields {
    done: Vec<String>,
    open: Option<String>,
}

impl Fields {
    fn append(&mut self, text: &str) -> Result<(), Fault> {
        let open = self.open.get_or_insert_default();
        if open.len() + text.len() > limits::WORD_BYTES_MAX {
            return Err(Fault::bound("bytes of a word", limits::WORD_BYTES_MAX));
        }
        open.push_str(text);
        Ok(())
    }

    fn append_split(&mut self, text: &str) -> Result<(), Fault> {
        if text.starts_with(char::is_whitespace) {
            self.done.extend(self.open.take());
        }
        for (i, field) in text.split_whitespace().enumerate() {
            if i > 0 {
                self.done.extend(self.open.take());
            }
            self.append(field)?;
        }
        if text.ends_with(char::is_whitespace) {
            self.done.extend(self.open.take());
        }
        Ok(())
    }
}

/// Replaces `$name` and `${name}` in text that is not a script, such as the options of a boot-loader-spec entry.
pub(crate) fn substitute(text: &str, value: &dyn Fn(&str) -> String) -> Result<String, Fault> {
    let (mut made, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        made.push_str(before);
        let (name, left) = variable(after);
        made.push_str(&if name.is_empty() { "$".to_owned() } else { value(name) });
        if made.len() > limits::WORD_BYTES_MAX {
            return Err(Fault::bound("bytes of a word", limits::WORD_BYTES_MAX));
        }
        rest = left;
    }
    made.push_str(rest);
    Ok(made)
}

/// The name after a dollar, and what follows it.
fn variable(after: &str) -> (&str, &str) {
    if let Some((name, left)) = after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
        return (name, left);
    }
    let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
    after.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grub::lexer::{Token, tokens};

    fn value(name: &str) -> String {
        match name {
            "two" => "b c".to_owned(),
            "wide" => " d ".to_owned(),
            _ => String::new(),
        }
    }

    fn arguments(script: &str) -> Vec<String> {
        let words = tokens(script).unwrap().into_iter();
        let words = words.filter_map(|(t, _)| if let Token::Word(w) = t { Some(w) } else { None });
        words.flat_map(|word| expand(&word, &value).unwrap()).collect()
    }

    #[test]
    fn unquoted_variables_split_and_vanish_quoted_ones_do_not() {
        assert_eq!(arguments("a$two"), ["ab", "c"]);
        assert_eq!(arguments("\"a$two\""), ["ab c"]);
        assert_eq!(arguments("x${wide}y"), ["x", "d", "y"]);
        assert_eq!(arguments("$none a"), ["a"]);
        assert_eq!(arguments("\"$none\" a"), ["", "a"]);
    }

    #[test]
    fn variables_are_replaced_in_plain_text() {
        assert_eq!(substitute("root=x $two ${none}ro $", &value).unwrap(), "root=x b c ro $");
        assert_eq!(substitute("no ${end", &value).unwrap(), "no ${end");
    }
}
