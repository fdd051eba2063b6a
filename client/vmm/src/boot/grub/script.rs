//! The structure of a GRUB script: commands, `if`, menu entries. What is not run here (functions, loops) is skipped.

use std::rc::Rc;

use super::GrubError;
use super::words::{Piece, Token, Word, tokens};

/// Levels of `if`, `menuentry`, `submenu` and blocks.
const MAX_NESTING: usize = 16;
/// Words of one command.
const MAX_WORDS: usize = 512;

/// Commands, one after the other. Shared: an entry keeps the body it was defined with.
pub(super) type Block = Rc<Vec<Statement>>;

/// A command of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Statement {
    /// A command and its arguments.
    Command(Vec<Word>),
    /// Conditions with what is done when they are the first to hold, and what is done when none does.
    If { branches: Vec<(Block, Block)>, otherwise: Block },
    /// `menuentry` or `submenu` with its arguments.
    Entry { is_submenu: bool, words: Vec<Word>, body: Block },
}

/// Reads a script.
pub(super) fn parse(script: &str) -> Result<Block, GrubError> {
    let tokens = tokens(script)?;
    let mut parser = Parser { tokens: tokens.into_iter().peekable(), depth: 0 };
    let (block, end) = parser.block(&[])?;
    match end {
        None => Ok(block),
        Some(_) => Err(GrubError::Unexpected("}".to_owned())),
    }
}

struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
    depth: usize,
}

impl Parser {
    /// Statements up to one of the words in `ends`, or to a closing brace; which one it was, `None` for the end of the
    /// script.
    fn block(&mut self, ends: &[&str]) -> Result<(Block, Option<String>), GrubError> {
        self.depth += 1;
        if self.depth > MAX_NESTING {
            return Err(GrubError::TooMuch { what: "nested blocks", limit: MAX_NESTING });
        }
        let mut statements = Vec::new();
        let end = loop {
            match self.tokens.next() {
                None => break None,
                Some(Token::End) => {}
                Some(Token::Close) => break Some("}".to_owned()),
                // A block of its own changes nothing about what is in it.
                Some(Token::Open) => {
                    let (inner, end) = self.block(&[])?;
                    expect(end, "}")?;
                    statements.extend(Rc::unwrap_or_clone(inner));
                }
                Some(Token::Word(word)) => match keyword(&word) {
                    Some(end) if ends.contains(&end) => break Some(end.to_owned()),
                    Some("if") => statements.push(self.conditional()?),
                    Some("function") => self.function()?,
                    Some("for" | "while" | "until") => self.skip_loop()?,
                    Some(name @ ("menuentry" | "submenu" | "hiddenentry")) => {
                        let is_submenu = name == "submenu";
                        let is_hidden = name == "hiddenentry";
                        if let Some(entry) = self.entry(word, is_submenu)?
                            && !is_hidden
                        {
                            statements.push(entry);
                        }
                    }
                    Some(end @ ("then" | "elif" | "else" | "fi" | "do" | "done")) => {
                        return Err(GrubError::Unexpected(end.to_owned()));
                    }
                    _ => statements.push(Statement::Command(self.words(word)?)),
                },
            }
        };
        self.depth -= 1;
        Ok((Rc::new(statements), end))
    }

    fn conditional(&mut self) -> Result<Statement, GrubError> {
        let mut branches = Vec::new();
        loop {
            let (condition, end) = self.block(&["then"])?;
            expect(end, "then")?;
            let (then, end) = self.block(&["elif", "else", "fi"])?;
            branches.push((condition, then));
            match end.as_deref() {
                Some("elif") => {}
                Some("else") => {
                    let (otherwise, end) = self.block(&["fi"])?;
                    expect(end, "fi")?;
                    return Ok(Statement::If { branches, otherwise });
                }
                _ => {
                    expect(end, "fi")?;
                    return Ok(Statement::If { branches, otherwise: Rc::default() });
                }
            }
        }
    }

    /// The words of a command up to its end. A brace that stands alone ends it too, and is left.
    fn words(&mut self, first: Word) -> Result<Vec<Word>, GrubError> {
        let mut words = vec![first];
        while let Some(Token::Word(word)) = self.tokens.next_if(|token| matches!(token, Token::Word(_))) {
            if words.len() == MAX_WORDS {
                return Err(GrubError::TooMuch { what: "words of a command", limit: MAX_WORDS });
            }
            words.push(word);
        }
        Ok(words)
    }

    /// A menu entry: its words up to the brace, and what is in braces. Without braces it has its commands in
    /// `--source` or in another file, and is none of ours.
    fn entry(&mut self, first: Word, is_submenu: bool) -> Result<Option<Statement>, GrubError> {
        let words = self.words(first)?;
        if self.tokens.next_if_eq(&Token::Open).is_none() {
            return Ok(None);
        }
        let (body, end) = self.block(&[])?;
        expect(end, "}")?;
        Ok(Some(Statement::Entry { is_submenu, words, body }))
    }

    fn function(&mut self) -> Result<(), GrubError> {
        while self.tokens.next_if(|token| matches!(token, Token::Word(_) | Token::End)).is_some() {}
        if self.tokens.next_if_eq(&Token::Open).is_none() {
            return Err(GrubError::Unfinished("a function"));
        }
        let (_, end) = self.block(&[])?;
        expect(end, "}")
    }

    /// `for`, `while`, `until`: read over up to `done`.
    fn skip_loop(&mut self) -> Result<(), GrubError> {
        let (_, end) = self.block(&["do"])?;
        expect(end, "do")?;
        let (_, end) = self.block(&["done"])?;
        expect(end, "done")
    }
}

/// The word, when it is nothing but text: what a keyword must be.
fn keyword(word: &Word) -> Option<&str> {
    match word.as_slice() {
        [Piece::Text(text)] => Some(text),
        _ => None,
    }
}

fn expect(end: Option<String>, expected: &'static str) -> Result<(), GrubError> {
    match end {
        Some(end) if end == expected => Ok(()),
        Some(end) => Err(GrubError::Unexpected(end)),
        None => Err(GrubError::Unfinished("a block")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(block: &Block) -> Vec<String> {
        let name = |statement: &Statement| match statement {
            Statement::Command(words) => keyword(&words[0]).unwrap_or("?").to_owned(),
            Statement::If { branches, otherwise } => {
                let parts: Vec<String> = branches
                    .iter()
                    .map(|(test, then)| format!("{:?}:{:?}", names(test), names(then)))
                    .collect();
                format!("if {} else {:?}", parts.join(" "), names(otherwise))
            }
            Statement::Entry { is_submenu, body, .. } => format!("entry {is_submenu} {:?}", names(body)),
        };
        block.iter().map(name).collect()
    }

    #[test]
    fn blocks_are_put_together() {
        let script = "a\nif b; then c; elif d ; then\n e\nelse f\nfi\nmenuentry 'x' {\n g\n}\nsubmenu 'y' { menuentry z { h } }";
        assert_eq!(
            names(&parse(script).unwrap()),
            [
                "a",
                r#"if ["b"]:["c"] ["d"]:["e"] else ["f"]"#,
                r#"entry false ["g"]"#,
                r#"entry true ["entry false [\"h\"]"]"#,
            ]
        );
    }

    #[test]
    fn functions_and_loops_are_read_over() {
        let script = "function f {\n if a; then b; fi\n}\nfor x in 1 2; do c; done\nwhile d; do e; done\ng";
        assert_eq!(names(&parse(script).unwrap()), ["g"]);
    }

    #[test]
    fn what_does_not_fit_together_is_an_error() {
        for script in ["}", "fi", "if a; then b", "menuentry x {", "if a; fi", "function f", "for a; b"] {
            assert!(parse(script).is_err(), "{script}");
        }
        assert!(parse("menuentry x").is_ok());
    }

    #[test]
    fn nesting_and_words_have_a_limit() {
        assert!(parse(&format!("{}{}", "{ ".repeat(15), "} ".repeat(15))).is_ok());
        assert!(matches!(parse(&"{ ".repeat(100_000)), Err(GrubError::TooMuch { .. })));
        assert!(matches!(parse(&"a ".repeat(1000)), Err(GrubError::TooMuch { .. })));
    }
}
