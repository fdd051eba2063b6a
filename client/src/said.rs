//! What a server, or another machine through it, says for people: nothing of it drives their terminals.

use chunk_format::misleads;
use serde::{Deserialize, Deserializer};

/// A text as a terminal may show it: control characters, and marks that turn its direction around, are replaced.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|char| if misleads(char) { char::REPLACEMENT_CHARACTER } else { char }).collect()
}

/// Reads a text of the server.
pub(crate) fn said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(printable(&String::deserialize(deserializer)?))
}

/// Reads a text of the server that may be absent.
pub(crate) fn said_if_any<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.as_deref().map(printable))
}

#[cfg(test)]
mod tests {
    use crate::remote::WantedInfo;

    #[test]
    fn names_of_other_machines_cannot_drive_the_terminal() {
        let json = r#"{"machine":"\u001b[2Jlaptop\u202egnp.","since_ms":1}"#;
        let wanted: WantedInfo = serde_json::from_str(json).unwrap();
        assert_eq!(wanted.machine, "\u{fffd}[2Jlaptop\u{fffd}gnp.");
    }
}
