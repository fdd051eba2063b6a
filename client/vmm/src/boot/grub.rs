//! GRUB's configuration: as much of its script language as the `grub.cfg` of the distributions need.

pub mod env;
mod run;
mod script;
mod words;

use std::collections::BTreeMap;

use thiserror::Error;

pub use run::Choice;
use run::Machine;

/// Bytes of a script that is read.
pub const MAX_BYTES: u64 = 1 << 20;

/// What a script may ask about the files around it.
pub trait Files {
    /// Length of a file, bytes; `None` when there is no such file.
    fn file_bytes(&self, path: &str) -> Option<u64>;
    /// Whether something is there, a directory too.
    fn exists(&self, path: &str) -> bool;
    /// The bytes of a file; `None` when it cannot be read, or is longer than that.
    fn read(&self, path: &str, max_bytes: u64) -> Option<Vec<u8>>;
}

/// Why a script is not understood.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GrubError {
    /// The script ends too early.
    #[error("{0} is not finished")]
    Unfinished(&'static str),
    /// A word where it cannot be.
    #[error("`{0}` is out of place")]
    Unexpected(String),
    /// A limit.
    #[error("it has more than {limit} {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// No `menuentry` at all.
    #[error("it has no menu entry")]
    NoEntry,
    /// The entry that is to be booted has no `linux` command.
    #[error("the entry `{0}` boots no Linux kernel")]
    NoKernel(String),
}

/// Runs a script and takes the entry it would boot when nobody touches the keyboard.
///
/// # Errors
/// It is not understood, or boots no Linux.
pub fn choose(script: &str, directory: &str, files: &dyn Files) -> Result<Choice, GrubError> {
    let script = script::parse(script)?;
    let mut machine = Machine::new(directory, files);
    machine.run(&script)?;
    machine.choose()
}

/// Runs a script and tells its variables: those the entries of the Boot Loader Specification beside it refer to.
///
/// # Errors
/// It is not understood.
pub fn variables(
    script: &str,
    directory: &str,
    files: &dyn Files,
) -> Result<BTreeMap<String, String>, GrubError> {
    let script = script::parse(script)?;
    let mut machine = Machine::new(directory, files);
    machine.run(&script)?;
    Ok(machine.into_variables())
}

/// A path without the device it may begin with, as in `(hd0,gpt1)/vmlinuz`.
pub(super) fn without_device(path: &str) -> &str {
    match path.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
        Some((_, rest)) => rest,
        None => path,
    }
}

#[cfg(test)]
mod tests;
