//! One at a time, across test processes.

use std::fs::{File, OpenOptions};

/// The right to use something a machine has too little of for tests to share; given back on drop.
///
/// Test runners start tests in parallel, some in processes of their own. Two emulated guests on two cores take more than
/// twice as long as one after the other, and then run into deadlines.
#[derive(Debug)]
pub struct Turn {
    _lock: File,
}

impl Turn {
    /// Waits for the turn at `what`, a plain word.
    pub fn wait(what: &str) -> Self {
        let user = rustix::process::getuid().as_raw();
        let path = std::env::temp_dir().join(format!("satchel-tests-{user}-{what}.lock"));
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .unwrap_or_else(|error| panic!("cannot open the lock {}: {error}", path.display()));
        lock.lock().unwrap_or_else(|error| panic!("cannot lock {}: {error}", path.display()));
        Self { _lock: lock }
    }
}
