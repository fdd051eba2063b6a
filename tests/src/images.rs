//! The disk images that `tests/images/build` makes and caches.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Returns a 16 MiB disk with one small ext4 file system; made in seconds, without root or network.
pub fn tiny() -> PathBuf {
    demand("tiny")
}

/// Returns a bootable Debian with a shell on its serial console.
pub fn plain() -> PathBuf {
    demand("plain")
}

/// Returns [`plain`] after its pending security updates.
pub fn plain_next() -> PathBuf {
    demand("plain-next")
}

/// Returns a bootable Debian with Xfce.
pub fn desktop() -> PathBuf {
    demand("desktop")
}

/// Returns [`desktop`] after its pending security updates.
pub fn desktop_next() -> PathBuf {
    demand("desktop-next")
}

#[track_caller]
fn demand(kind: &str) -> PathBuf {
    build(kind).unwrap_or_else(|reason| panic!("{reason}"))
}

/// Returns the path of the image `kind`, building it first when the cache has none.
///
/// # Errors
/// Why it cannot be built: the builder's last line.
pub(crate) fn build(kind: &str) -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/build");
    let output = Command::new(&script)
        .arg(kind)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {}: {error}", script.display()))?;
    if output.status.success() {
        return Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()));
    }
    let messages = String::from_utf8_lossy(&output.stderr);
    let last = messages.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message");
    Err(format!("the disk image {kind} cannot be built: {last}"))
}
