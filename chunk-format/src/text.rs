//! Texts in manifests that are for people: what they may hold, so that lists show what is written.

use crate::error::FormatError;
use crate::id::preview;

/// The longest name of a machine, bytes.
pub const MAX_MACHINE_BYTES: usize = 128;
/// The longest note, bytes.
pub const MAX_NOTE_BYTES: usize = 1000;

/// Whether a character could make a listing show something else than what is written: control characters, line and
/// paragraph separators, marks that turn the direction of the text around.
pub fn misleads(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'
        )
}

/// Checks what is to be said of a version, before anything is made that bears it.
///
/// # Errors
/// `Field`, as [`crate::Manifest::encode`] would answer.
pub fn check_note(note: &str) -> Result<(), FormatError> {
    check_text("note", note, MAX_NOTE_BYTES)
}

pub(crate) fn check_machine(machine: &str) -> Result<(), FormatError> {
    check_text("machine", machine, MAX_MACHINE_BYTES)
}

fn check_text(field: &'static str, text: &str, limit_bytes: usize) -> Result<(), FormatError> {
    if text.len() > limit_bytes || text.chars().any(misleads) {
        let expected = format!("at most {limit_bytes} bytes without control or direction characters");
        return Err(FormatError::field("manifest", field, preview(text), expected));
    }
    Ok(())
}

/// A text as a manifest takes it: what misleads is replaced by U+FFFD, and what is too long is cut after a whole character.
pub fn presentable(text: &str, limit_bytes: usize) -> String {
    let shown = text.chars().map(|char| if misleads(char) { char::REPLACEMENT_CHARACTER } else { char });
    let mut len_bytes = 0;
    let fits = |char: &char| {
        len_bytes += char.len_utf8();
        len_bytes <= limit_bytes
    };
    shown.take_while(fits).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_misleads_is_replaced_and_what_is_too_long_is_cut() {
        assert_eq!(presentable("a\tb\u{202e}c", 100), "a\u{fffd}b\u{fffd}c");
        assert_eq!(presentable("B\u{fc}ro", 2), "B");
        assert_eq!(presentable("B\u{fc}ro", 3), "B\u{fc}");
    }

    proptest! {
        #[test]
        fn what_is_presentable_is_taken_and_what_is_taken_stays_as_it_is(text in "(?s).{0,1200}") {
            let shown = presentable(&text, MAX_NOTE_BYTES);
            prop_assert!(check_note(&shown).is_ok());
            prop_assert_eq!(check_note(&text).is_ok(), shown == text);
            prop_assert!(check_machine(&presentable(&text, MAX_MACHINE_BYTES)).is_ok());
        }
    }
}
