//! What reaches the person: data on stdout, everything else on stderr.

use std::io::{self, IsTerminal, Write};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

/// Decides form and place of output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    json: bool,
}

/// Whether stderr may have colours: a terminal, and `NO_COLOR` not set (no-color.org).
pub(crate) fn color_on_stderr() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

impl Printer {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints a result: as JSON, or as the text made of it.
    pub(crate) fn result<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> io::Result<()> {
        let mut out = if self.json { serde_json::to_string_pretty(value)? } else { text(value) };
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(out.as_bytes())?;
        stdout.flush()
    }

    /// Says something that is no result.
    pub(crate) fn message(self, text: &str) {
        self.say(text);
    }

    /// Warns.
    pub(crate) fn warning(self, text: &str) {
        self.say(&format!("{} {text}", paint("warning:", "33")));
    }

    /// Says why the command failed.
    pub(crate) fn error(self, text: &str) {
        let mut lines = text.lines();
        self.say(&format!("{} {}", paint("error:", "31"), lines.next().unwrap_or("")));
        for line in lines {
            match line.strip_prefix("hint: ") {
                Some(hint) => self.say(&format!("{} {hint}", paint("hint:", "36"))),
                None => self.say(line),
            }
        }
    }

    fn say(self, text: &str) {
        // When stderr is gone there is nobody left to tell.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}

/// A failure of which a person has read already.
#[derive(Debug, thiserror::Error)]
#[error("see above")]
pub(crate) struct AlreadySaid;

/// Whether a line of another process of this program says why it failed.
pub(crate) fn is_error(line: &str) -> bool {
    line.starts_with("error: ")
}

fn paint(text: &str, code: &str) -> String {
    if color_on_stderr() { format!("\u{1b}[1;{code}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// A count with its word, in the plural where it is not one: `1 version`, `2 versions`.
pub(crate) fn count(number: u64, word: &str) -> String {
    let stem = word.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'o', 'u']));
    match (number, stem) {
        (1, _) => format!("1 {word}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {word}s"),
    }
}

/// A table with aligned columns; the header is left out when there are no rows.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    if rows.is_empty() {
        return String::new();
    }
    let mut out = line(&mut header.iter().copied());
    rows.iter().for_each(|row| out.push_str(&line(&mut row.iter().map(String::as_str))));
    out
}

/// A moment in the person's own time zone.
pub(crate) fn moment(ms: u64) -> String {
    let at = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    match at {
        Some(at) => at.to_zoned_datetime(TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string(),
        None => "?".to_owned(),
    }
}

/// The beginning of an id: enough to tell versions apart, and accepted wherever a version is asked for.
pub(crate) fn short(id: &impl ToString) -> String {
    id.to_string().chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        let said =
            [(1, "version"), (0, "file"), (2, "chunk"), (1, "directory"), (3, "directory"), (9, "day")];
        let said = said.map(|(number, word)| count(number, word));
        assert_eq!(said, ["1 version", "0 files", "2 chunks", "1 directory", "3 directories", "9 days"]);
    }

    #[test]
    fn tables_align_and_end_without_blanks() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["long".to_owned(), String::new()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME  N\na     1\nlong\n");
        assert_eq!(table(&["NAME"], &[]), "");
    }
}
