//! Errors with their causes, as a line of text.

use std::error::Error;

/// An error and all its causes in one line, from the outermost in.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        // Some libraries repeat the text of what they wrap.
        if !text.ends_with(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start")]
    struct Outer(#[source] Middle);

    #[derive(Debug, thiserror::Error)]
    #[error("no file: not found")]
    struct Middle(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("not found")]
    struct Inner;

    #[test]
    fn causes_follow_each_other_and_are_not_repeated() {
        assert_eq!(chain(&Outer(Middle(Inner))), "cannot start: no file: not found");
    }
}
