//! Text to words, as GRUB splits it.

use std::iter::Peekable;
use std::str::Chars;

use crate::error::Fault;
use crate::limits;

/// A piece of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Text as it stands. `quoted` text makes a word even if empty, and is never a keyword.
    Text { text: String, quoted: bool },
    /// A variable's value; unquoted it is split into words.
    Variable { name: String, quoted: bool },
}

/// One word, not yet expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word(pub(super) Vec<Part>);

impl Word {
    /// The text of a word without quotes and variables: what can be a keyword.
    pub(super) fn bare(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Part::Text { text, quoted: false }] => Some(text),
            _ => None,
        }
    }
}

/// What the parser reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Word(Word),
    /// A line's end or `;`.
    End,
    Open,
    Close,
}

/// A token and the line it begins in, from 1.
pub(super) type Placed = (Token, u32);

/// All tokens of a script.
pub(super) fn tokens(script: &str) -> Result<Vec<Placed>, Fault> {
    let mut lexer = Lexer { rest: script.chars().peekable(), line: 1 };
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next()? {
        if tokens.len() == limits::TOKENS_MAX {
            return Err(Fault::bound("tokens", limits::TOKENS_MAX));
        }
        tokens.push(token);
    }
    Ok(tokens)
}

struct Lexer<'a> {
    rest: Peekable<Chars<'a>>,
    line: u32,
}

impl Lexer<'_> {
    fn next(&mut self) -> Result<Option<Placed>, Fault> {
        self.skip_blanks();
        let line = self.line;
        let Some(first) = self.rest.peek().copied() else {
            return Ok(None);
        };
        let token = match first {
            '\n' | ';' => Token::End,
            '{' => Token::Open,
            '}' => Token::Close,
            _ => return Ok(Some((Token::Word(self.word()?), line))),
        };
        self.take();
        Ok(Some((token, line)))
    }

    fn take(&mut self) -> Option<char> {
        let taken = self.rest.next();
        self.line = self.line.saturating_add(u32::from(taken == Some('\n')));
        taken
    }

    fn take_if(&mut self, wanted: char) -> bool {
        let is_next = self.rest.peek() == Some(&wanted);
        if is_next {
            self.take();
        }
        is_next
    }

    /// Blanks, comments up to the line's end, and lines joined by a backslash.
    fn skip_blanks(&mut self) {
        while let Some(next) = self.rest.peek().copied() {
            match next {
                ' ' | '\t' | '\r' => {}
                '#' => {
                    self.skip_comment();
                    continue;
                }
                '\\' if self.joins_lines() => {
                    self.take();
                }
                _ => return,
            }
            self.take();
        }
    }

    fn skip_comment(&mut self) {
        while self.rest.peek().is_some_and(|c| *c != '\n') {
            self.take();
        }
    }

    fn joins_lines(&self) -> bool {
        let mut ahead = self.rest.clone();
        ahead.next();
        ahead.next() == Some('\n')
    }

    fn word(&mut self) -> Result<Word, Fault> {
        let mut parts = Vec::new();
        while let Some(next) = self.rest.peek().copied() {
            match next {
                ' ' | '\t' | '\r' | '\n' | ';' | '{' | '}' => break,
                '\'' => parts.push(self.single_quoted()?),
                '"' => self.double_quoted(&mut parts)?,
                '$' => self.variable(false, &mut parts)?,
                _ => self.plain(&mut parts),
            }
        }
        Ok(Word(parts))
    }

    /// Unquoted text. A backslash keeps the next character's meaning away, and the text from being a keyword.
    fn plain(&mut self, parts: &mut Vec<Part>) {
        let (mut text, mut quoted) = (String::new(), false);
        while let Some(next) = self.rest.peek().copied() {
            match next {
                ' ' | '\t' | '\r' | '\n' | ';' | '{' | '}' | '\'' | '"' | '$' => break,
                '\\' => {
                    self.take();
                    quoted = true;
                    text.extend(self.take().filter(|c| *c != '\n'));
                }
                _ => text.extend(self.take()),
            }
        }
        parts.push(Part::Text { text, quoted });
    }

    fn single_quoted(&mut self) -> Result<Part, Fault> {
        let line = self.line;
        self.take();
        let mut text = String::new();
        loop {
            match self.take() {
                Some('\'') => return Ok(Part::Text { text, quoted: true }),
                Some(c) => text.push(c),
                None => return Err(Fault::Syntax { line, reason: "a single quote is not closed" }),
            }
        }
    }

    fn double_quoted(&mut self, parts: &mut Vec<Part>) -> Result<(), Fault> {
        let line = self.line;
        self.take();
        let mut text = String::new();
        loop {
            if self.rest.peek() == Some(&'$') {
                parts.push(Part::Text { text: std::mem::take(&mut text), quoted: true });
                self.variable(true, parts)?;
                continue;
            }
            match self.take() {
                Some('"') => break,
                Some('\\') => self.escaped(&mut text),
                Some(c) => text.push(c),
                None => return Err(Fault::Syntax { line, reason: "a double quote is not closed" }),
            }
        }
        parts.push(Part::Text { text, quoted: true });
        Ok(())
    }

    /// Within double quotes a backslash only matters before what would otherwise mean something.
    fn escaped(&mut self, text: &mut String) {
        match self.take() {
            Some('\n') | None => {}
            Some(c @ ('"' | '\\' | '$')) => text.push(c),
            Some(c) => text.extend(['\\', c]),
        }
    }

    fn variable(&mut self, quoted: bool, parts: &mut Vec<Part>) -> Result<(), Fault> {
        let line = self.line;
        self.take();
        let braced = self.take_if('{');
        let name = self.name();
        if braced && !self.take_if('}') {
            return Err(Fault::Syntax { line, reason: "a ${ is not closed after the variable's name" });
        }
        parts.push(match name.is_empty() {
            // A dollar that names nothing is a dollar.
            true => Part::Text { text: "$".to_owned(), quoted },
            false => Part::Variable { name, quoted },
        });
        Ok(())
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.rest.peek().copied() {
            Some('?' | '#' | '*' | '@') => name.extend(self.take()),
            Some(c) if c.is_ascii_digit() => self.name_while(&mut name, |c| c.is_ascii_digit()),
            _ => self.name_while(&mut name, |c| c.is_ascii_alphanumeric() || c == '_'),
        }
        name
    }

    fn name_while(&mut self, name: &mut String, fits: fn(char) -> bool) {
        while self.rest.peek().is_some_and(|c| fits(*c)) {
            name.extend(self.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str, quoted: bool) -> Part {
        Part::Text { text: text.to_owned(), quoted }
    }

    fn variable(name: &str, quoted: bool) -> Part {
        Part::Variable { name: name.to_owned(), quoted }
    }

    fn words(script: &str) -> Vec<Vec<Part>> {
        let all = tokens(script).unwrap().into_iter();
        all.filter_map(|(t, _)| if let Token::Word(w) = t { Some(w.0) } else { None }).collect()
    }

    #[test]
    fn quotes_escapes_and_variables_make_one_word() {
        let parts = words(r#"a'b c'"d $e"\'${f}g"#);
        let expected = vec![
            text("a", false),
            text("b c", true),
            text("d ", true),
            variable("e", true),
            text("", true),
            text("'", true),
            variable("f", false),
            text("g", false),
        ];
        assert_eq!(parts, vec![expected]);
    }

    #[test]
    fn an_empty_string_is_a_word() {
        assert_eq!(words("[ '' ]").len(), 3);
    }

    #[test]
    fn comments_and_joined_lines_are_not_words() {
        assert_eq!(words("a # b c\n# d\ne \\\n f").len(), 3);
        assert_eq!(words("a#b"), vec![vec![text("a#b", false)]]);
    }

    #[test]
    fn braces_end_a_word() {
        let kinds: Vec<_> = tokens("menuentry 'x'{\n}").unwrap().into_iter().map(|(t, _)| t).collect();
        assert!(matches!(kinds[..], [Token::Word(_), Token::Word(_), Token::Open, Token::End, Token::Close]));
    }

    #[test]
    fn an_open_quote_is_named_with_its_line() {
        let error = tokens("a\nb 'c\n").unwrap_err();
        assert!(matches!(error, Fault::Syntax { line: 2, .. }), "{error}");
    }

    #[test]
    fn tokens_are_bounded() {
        let script = ";".repeat(limits::TOKENS_MAX + 1);
        assert!(matches!(tokens(&script), Err(Fault::Bound { what: "tokens", .. })));
    }
}
