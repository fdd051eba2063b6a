//! The last one out: kills what a test process leaves behind.
//!
//! Drop does not run when a test runner kills a test that takes too long. So one shell per test process reads from a pipe
//! which process groups run and which directories are mounted; when the pipe closes, because the test process is gone,
//! it kills and unmounts what is left.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

const SCRIPT: &str = r#"
trap '' INT TERM HUP
left=$(mktemp) || exit 1
while read -r verb kind what; do
  case $verb in
    remember) echo "$kind $what" >>"$left" ;;
    forget) grep -vxF "$kind $what" "$left" >"$left.new"; mv "$left.new" "$left" ;;
  esac
done
while read -r kind what; do
  case $kind in
    group) kill -s KILL -- "-$what" ;;
    mount) fusermount3 -u -z "$what" || umount -l "$what" ;;
  esac
done <"$left"
rm -f "$left"
"#;

fn tell(line: &str) {
    static SHELL: OnceLock<Mutex<Child>> = OnceLock::new();
    let shell = SHELL.get_or_init(|| {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // A group of its own: what kills the test process must not kill the shell.
        Mutex::new(command.process_group(0).spawn().expect("a shell can be started"))
    });
    let mut shell = shell.lock().unwrap_or_else(PoisonError::into_inner);
    let pipe = shell.stdin.as_mut().expect("stdin is a pipe");
    writeln!(pipe, "{line}").expect("the reaper reads until the test process ends");
}

/// Has the process group killed when this process ends.
pub(super) fn remember_group(id: u32) {
    tell(&format!("remember group {id}"));
}

/// Leaves the process group alone from now on: it has ended, and its id may come to name another.
pub(super) fn forget_group(id: u32) {
    tell(&format!("forget group {id}"));
}

/// Has `directory` unmounted when this process ends.
pub(crate) fn remember_mount(directory: &Path) {
    tell(&format!("remember mount {}", directory.display()));
}

/// Leaves `directory` alone from now on.
pub(crate) fn forget_mount(directory: &Path) {
    tell(&format!("forget mount {}", directory.display()));
}
