//! Words of GRUB's script language: quoting, comments, continued lines (GRUB manual, section "Shell-like scripting").

use super::GrubError;

/// Pieces of words of one script.
const MAX_PIECES: usize = 200_000;

/// A piece of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Text as it stands. Quoted text makes a word even where it is empty.
    Text(String),
    /// The value of a variable; when it is not quoted, blanks in it part words.
    Variable { name: String, is_quoted: bool },
}

/// A word, before its variables are put in.
pub(super) type Word = Vec<Piece>;

/// What a script is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Word(Word),
    /// `{`
    Open,
    /// `}`
    Close,
    /// The end of a line, or `;`.
    End,
}

/// Parts a script into its tokens.
pub(super) fn tokens(script: &str) -> Result<Vec<Token>, GrubError> {
    let mut reader = Reader { rest: script.chars().peekable(), tokens: Vec::new(), word: None, pieces: 0 };
    while let Some(c) = reader.rest.next() {
        reader.outside(c)?;
    }
    reader.end_word();
    reader.tokens.push(Token::End);
    Ok(reader.tokens)
}

struct Reader<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    tokens: Vec<Token>,
    word: Option<Word>,
    pieces: usize,
}

impl Reader<'_> {
    /// One character outside of quotes.
    fn outside(&mut self, c: char) -> Result<(), GrubError> {
        match c {
            ' ' | '\t' | '\r' => self.end_word(),
            '\n' | ';' => {
                self.end_word();
                self.tokens.push(Token::End);
            }
            '#' if self.word.is_none() => while self.rest.next_if(|c| *c != '\n').is_some() {},
            // Braces stand alone: `{` and `}` within a word, as in `${name}`, are part of it.
            '{' if self.word.is_none() => self.tokens.push(Token::Open),
            '}' if self.word.is_none() => self.tokens.push(Token::Close),
            '\\' => match self.rest.next() {
                Some('\n') | None => {}
                Some(c) => self.text(c)?,
            },
            '\'' => {
                self.begin_text()?;
                loop {
                    match self.rest.next() {
                        Some('\'') => break,
                        Some(c) => self.text(c)?,
                        None => return Err(GrubError::Unfinished("a quote")),
                    }
                }
            }
            '"' => self.double_quoted()?,
            '$' => self.variable(false)?,
            c => self.text(c)?,
        }
        Ok(())
    }

    fn double_quoted(&mut self) -> Result<(), GrubError> {
        self.begin_text()?;
        loop {
            match self.rest.next() {
                Some('"') => return Ok(()),
                Some('\\') => match self.rest.next() {
                    Some('\n') => {}
                    Some(c @ ('$' | '"' | '\\')) => self.text(c)?,
                    Some(c) => {
                        self.text('\\')?;
                        self.text(c)?;
                    }
                    None => return Err(GrubError::Unfinished("a quote")),
                },
                Some('$') => self.variable(true)?,
                Some(c) => self.text(c)?,
                None => return Err(GrubError::Unfinished("a quote")),
            }
        }
    }

    /// What follows a dollar: `{name}`, `name`, a digit or one of `?*#@`; else it stands for itself.
    fn variable(&mut self, is_quoted: bool) -> Result<(), GrubError> {
        let is_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
        let mut name = String::new();
        if self.rest.next_if_eq(&'{').is_some() {
            while let Some(c) = self.rest.next_if(|c| *c != '}' && *c != '\n') {
                name.push(c);
            }
            if self.rest.next_if_eq(&'}').is_none() {
                return Err(GrubError::Unfinished("a variable's name"));
            }
        } else if let Some(c) = self.rest.next_if(|c| c.is_ascii_digit() || "?*#@".contains(*c)) {
            name.push(c);
        } else {
            while let Some(c) = self.rest.next_if(is_name) {
                name.push(c);
            }
            if name.is_empty() {
                return self.text('$');
            }
        }
        self.push(Piece::Variable { name, is_quoted })
    }

    /// A quote begins: a word is there, even if nothing stands in it.
    fn begin_text(&mut self) -> Result<(), GrubError> {
        match self.word.as_deref() {
            Some([.., Piece::Text(_)]) => Ok(()),
            _ => self.push(Piece::Text(String::new())),
        }
    }

    fn text(&mut self, c: char) -> Result<(), GrubError> {
        if let Some([.., Piece::Text(text)]) = self.word.as_deref_mut() {
            text.push(c);
            return Ok(());
        }
        self.push(Piece::Text(c.to_string()))
    }

    fn push(&mut self, piece: Piece) -> Result<(), GrubError> {
        self.pieces += 1;
        if self.pieces > MAX_PIECES {
            return Err(GrubError::TooMuch { what: "words", limit: MAX_PIECES });
        }
        self.word.get_or_insert_default().push(piece);
        Ok(())
    }

    fn end_word(&mut self) {
        if let Some(word) = self.word.take() {
            self.tokens.push(Token::Word(word));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Piece {
        Piece::Text(text.to_owned())
    }

    fn variable(name: &str, is_quoted: bool) -> Piece {
        Piece::Variable { name: name.to_owned(), is_quoted }
    }

    fn words(script: &str) -> Vec<Word> {
        let word = |token| if let Token::Word(word) = token { Some(word) } else { None };
        tokens(script).unwrap().into_iter().filter_map(word).collect()
    }

    #[test]
    fn quotes_and_backslashes_keep_what_they_cover() {
        assert_eq!(words(r#"a'b c'"d e"\ f"#), [[text("ab cd e f")]]);
        assert_eq!(
            words(r#"'' "" '$x' "\$x" \$x"#),
            [[text("")], [text("")], [text("$x")], [text("$x")], [text("$x")]]
        );
        assert_eq!(words(r"'Debian'\''s'"), [[text("Debian's")]]);
        assert_eq!(words("a\\\nb"), [[text("ab")]]);
        assert_eq!(words(r#""a\nb""#), [[text("a\\nb")]]);
    }

    #[test]
    fn variables_are_found_in_and_out_of_quotes() {
        assert_eq!(
            words(r#"x${a}y "$b" $c-d $"#),
            [
                vec![text("x"), variable("a", false), text("y")],
                vec![text(""), variable("b", true)],
                vec![variable("c", false), text("-d")],
                vec![text("$")],
            ]
        );
    }

    #[test]
    fn comments_end_with_their_line_and_begin_with_a_word() {
        assert_eq!(words("a # b ' c\nd#e"), [[text("a")], [text("d#e")]]);
    }

    #[test]
    fn braces_and_ends_stand_alone() {
        assert_eq!(
            tokens("f {\n}").unwrap(),
            [Token::Word(vec![text("f")]), Token::Open, Token::End, Token::Close, Token::End]
        );
    }

    #[test]
    fn what_is_not_finished_is_an_error() {
        for script in ["'a", "\"a", "\"a\\", "${a", "${a\n}"] {
            assert!(matches!(tokens(script), Err(GrubError::Unfinished(_))), "{script}");
        }
    }
}
