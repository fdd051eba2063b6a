//! Data goes to stdout, messages go to stderr.

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

/// Prints a line of data. A reader that went away is no failure: it has what it wanted.
pub(crate) fn data(line: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to stdout")
        }
        _ => Ok(()),
    }
}

/// Prints one JSON value.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    data(&serde_json::to_string(value)?)
}

/// Prints a line for people. There is nobody to tell when that fails.
pub(crate) fn message(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
