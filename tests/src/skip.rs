//! Tests that cannot run here say so.
//!
//! [`require!`](crate::require) ends a test early when the machine lacks what it needs. The reason goes to the standard
//! error stream, past the test runner's capture, and as a line `TEST<tab>REASON` to the file `$SATCHEL_SKIP_LOG`, from
//! which `make test` makes its closing list. `SATCHEL_REQUIRE=fuse,guest` turns the lack of those into a failure.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;

use crate::images;

/// Something a test needs from the machine.
#[derive(Debug)]
pub struct Need {
    /// What `SATCHEL_REQUIRE` calls it.
    pub name: String,
    /// Why the machine does not have it; `None` when it does.
    pub lack: Option<String>,
}

impl Need {
    fn new(name: &str, lack: Option<String>) -> Self {
        Self { name: name.to_owned(), lack }
    }

    /// Returns why a test may go without this; `None` when it need not.
    ///
    /// # Panics
    /// When it is lacking though it is among the `required` names.
    #[track_caller]
    fn excused(self, required: &str) -> Option<String> {
        let reason = self.lack?;
        let is_required = required.split(',').any(|name| name.trim() == self.name);
        assert!(!is_required, "SATCHEL_REQUIRE says this machine has {}, but: {reason}", self.name);
        Some(reason)
    }
}

/// Ends the test, visibly, unless this machine has everything named: `require!(fuse, tool("fio"))`.
///
/// The needs are the functions of [`skip`](crate::skip).
#[macro_export]
macro_rules! require {
    ($($need:ident $(($($argument:expr),*))?),+ $(,)?) => {
        $(
            if $crate::skip::is_lacking($crate::skip::$need($($($argument),*)?), module_path!(), line!()) {
                return;
            }
        )+
    };
}

/// Needs FUSE file systems that an ordinary user can mount, seen from root.
pub fn user_fuse() -> Need {
    let mode = fs::metadata("/dev/fuse").map(|device| device.permissions().mode());
    let lack = match mode {
        Err(error) => Some(format!("cannot look at /dev/fuse: {error}")),
        Ok(mode) if mode & 0o006 != 0o006 => Some("/dev/fuse is not for everyone here".to_owned()),
        Ok(_) => tool("fusermount3").lack,
    };
    Need::new("user_fuse", lack)
}

/// Needs to mount FUSE file systems.
pub fn fuse() -> Need {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let lack = match device {
        Err(error) => Some(format!("cannot open /dev/fuse: {error}")),
        Ok(_) if is_root() => None,
        Ok(_) => tool("fusermount3").lack,
    };
    Need::new("fuse", lack)
}

/// Needs a `/dev/kvm` that runs stock kernels.
pub fn kvm() -> Need {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let virtualises = flags
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
    let lack = if virtualises {
        let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        device.err().map(|error| format!("cannot open /dev/kvm: {error}"))
    } else {
        Some("the processor has neither vmx nor svm".to_owned())
    };
    Need::new("kvm", lack)
}

/// Needs what the lab runs on, a machine in which `/dev/kvm` works everywhere; and somebody who has some minutes: `SATCHEL_LAB`
/// is `brief` or `long`.
pub fn lab() -> Need {
    let programs = ["qemu-system-x86_64", "busybox", "cpio", "modprobe", "passt"];
    let lack = programs.into_iter().find_map(|program| tool(program).lack);
    let slow =
        || "there is no KVM here, and the lab that has one takes minutes: `make test-kvm` runs it".to_owned();
    Need::new("lab", lack.or_else(|| (!asked_for("brief") && !asked_for("long")).then(slow)))
}

/// Needs the [`lab`] for half an hour: `SATCHEL_LAB` is `long`.
pub fn lab_for_long() -> Need {
    let slow = || {
        "there is no KVM here, and this takes long in the lab that has one: `make test-kvm` runs it"
            .to_owned()
    };
    Need::new("lab_for_long", lab().lack.or_else(|| (!asked_for("long")).then(slow)))
}

fn asked_for(length: &str) -> bool {
    std::env::var_os("SATCHEL_LAB").is_some_and(|asked| asked == length)
}

/// Needs to be root.
pub fn root() -> Need {
    Need::new("root", (!is_root()).then(|| "not run as root".to_owned()))
}

/// Needs the program `name` in `$PATH`.
pub fn tool(name: &str) -> Need {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(name).is_file());
    Need::new(name, (!found).then(|| format!("{name} is not installed")))
}

/// Needs to run Debian guests: QEMU, and the plain disk image, which is built when the cache has none.
pub fn guest() -> Need {
    let lack = tool("qemu-system-x86_64").lack.or_else(|| images::build("plain").err());
    Need::new("guest", lack)
}

/// Needs the disk image `kind`, which is built when the cache has none.
pub fn image(kind: &str) -> Need {
    Need::new(kind, images::build(kind).err())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Reports a need that this machine lacks, and whether it does. For [`require!`](crate::require).
///
/// # Panics
/// When `SATCHEL_REQUIRE` names the need.
#[track_caller]
pub fn is_lacking(need: Need, module: &str, line: u32) -> bool {
    let required = std::env::var("SATCHEL_REQUIRE").unwrap_or_default();
    let Some(reason) = need.excused(&required) else {
        return false;
    };
    let test = test_name(module, line);
    // Written to the stream itself: what goes through eprintln! is only shown of tests that fail.
    let _ = writeln!(io::stderr().lock(), "SKIPPED {test}: {reason}");
    if let Some(log) = std::env::var_os("SATCHEL_SKIP_LOG") {
        let note = format!("{test}\t{}\n", reason.replace('\n', " "));
        let file = OpenOptions::new().create(true).append(true).open(&log);
        if let Err(error) = file.and_then(|mut file| file.write_all(note.as_bytes())) {
            panic!("cannot note a skipped test in {}: {error}", log.display());
        }
    }
    true
}

/// Returns the name of the running test: its thread's, unless the runner runs it on the main thread.
fn test_name(module: &str, line: u32) -> String {
    let package = module.split("::").next().unwrap_or(module);
    match std::thread::current().name() {
        Some(name) if name != "main" => format!("{package}::{name}"),
        _ => match std::env::var("NEXTEST_TEST_NAME") {
            Ok(name) => format!("{package}::{name}"),
            Err(_) => format!("{module}:{line}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Output};

    use super::*;

    fn moon() -> Need {
        Need::new("moon", Some("it is daytime".to_owned()))
    }

    #[test]
    fn what_is_there_needs_no_excuse() {
        assert_eq!(tool("sh").excused("sh"), None);
    }

    #[test]
    fn what_is_lacking_is_excused_with_its_reason() {
        assert_eq!(moon().excused("fuse, sun").as_deref(), Some("it is daytime"));
        let reason = tool("no-such-program").excused("");
        assert_eq!(reason.as_deref(), Some("no-such-program is not installed"));
    }

    #[test]
    #[should_panic(expected = "says this machine has moon, but: it is daytime")]
    fn what_is_required_is_not_excused() {
        moon().excused("sun, moon");
    }

    /// Run by the tests below in a process of its own.
    #[test]
    #[ignore = "a helper: it is skipped on every machine"]
    fn is_skipped() {
        crate::require!(tool("sh"), tool("no-such-program"));
        panic!("a skipped test must not go on");
    }

    fn run_skipped(log: &Path, required: &str) -> Output {
        Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "skip::tests::is_skipped"])
            .env("SATCHEL_SKIP_LOG", log)
            .env("SATCHEL_REQUIRE", required)
            .env_remove("NEXTEST_TEST_NAME")
            .output()
            .unwrap()
    }

    #[test]
    fn a_skipped_test_passes_visibly() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let output = run_skipped(log.path(), "");
        assert!(output.status.success());
        let messages = String::from_utf8(output.stderr).unwrap();
        assert!(messages.contains("SKIPPED satchel_tests::skip::tests::"), "{messages}");
        let noted = fs::read_to_string(log.path()).unwrap();
        assert!(noted.starts_with("satchel_tests::skip::tests::"), "{noted}");
        assert!(noted.ends_with("\tno-such-program is not installed\n"), "{noted}");
    }

    #[test]
    fn a_required_test_fails_instead() {
        let log = tempfile::NamedTempFile::new().unwrap();
        assert!(!run_skipped(log.path(), "fuse,no-such-program").status.success());
        assert_eq!(fs::read_to_string(log.path()).unwrap(), "");
    }
}
