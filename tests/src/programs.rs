//! Where the programs under test are.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns the path of a program this workspace builds: in `$SATCHEL_BIN_DIR`, or else beside this very executable.
///
/// # Panics
/// When it is not there, or older than a source it is made of: the harness is a crate of its own, so cargo does not build
/// the programs for it.
#[track_caller]
pub(crate) fn path(name: &str) -> PathBuf {
    if let Some(directory) = env::var_os("SATCHEL_BIN_DIR") {
        let program = PathBuf::from(directory).join(name);
        assert!(
            program.is_file(),
            "{} is not there; SATCHEL_BIN_DIR names the wrong directory",
            program.display()
        );
        return program;
    }
    let executable = env::current_exe().expect("this executable has a path");
    let directory = executable.parent().expect("an executable lies in a directory");
    let directory =
        if directory.ends_with("deps") { directory.parent().expect("deps has a parent") } else { directory };
    let program = directory.join(name);
    assert!(program.is_file(), "{} is not built; run `cargo build --workspace` first", program.display());
    if let Some(source) = newer_source(&program) {
        panic!(
            "{} is older than its source {}; run `cargo build --workspace` first",
            program.display(),
            source.display()
        );
    }
    program
}

/// Returns a source, as cargo lists them in `PROGRAM.d`, that changed after the program was built.
fn newer_source(program: &Path) -> Option<PathBuf> {
    let built = fs::metadata(program).ok()?.modified().ok()?;
    let rule = fs::read_to_string(program.with_extension("d")).ok()?;
    let (_, sources) = rule.lines().next()?.split_once(": ")?;
    // A space within a path is escaped with a backslash.
    sources.replace("\\ ", "\0").split(' ').map(|source| PathBuf::from(source.replace('\0', " "))).find(
        |source| fs::metadata(source).and_then(|found| found.modified()).is_ok_and(|changed| changed > built),
    )
}

/// Makes a command that sees nothing of this machine's settings: an empty home, no proxies, plain English.
pub(crate) fn hermetic(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .current_dir(home)
        .env("HOME", home)
        .env("NO_COLOR", "1")
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC");
    // What a person running the tests may want to reach the program with.
    for name in ["PATH", "TMPDIR", "RUST_LOG", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"] {
        if let Some(value) = env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}
