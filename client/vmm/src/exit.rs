//! What is said when the program fails, and what it exits with: whoever started it goes by that.

use satchel_vmm::boot::BootError;
use satchel_vmm::launch::LaunchError;

/// The guest wants its machine started again.
pub(crate) const RESET: u8 = 3;
/// Something failed, maybe while a guest ran.
const FAILED: u8 = 1;
/// Nothing on the disk can be booted by this machine. Another one may boot it.
const NO_BOOT: u8 = 4;
/// The machine cannot be made, or its disk cannot be read, and no guest has run.
const NOT_STARTED: u8 = 5;

/// What a machine is made of, or what is to be read, cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub(crate) struct NotToBeHad(pub(crate) anyhow::Error);

/// The exit status of a failure.
pub(crate) fn status_of(error: &anyhow::Error) -> u8 {
    match boot_error(error) {
        Some(BootError::Disk(_)) => NOT_STARTED,
        Some(_) => NO_BOOT,
        None if error.is::<LaunchError>() || error.is::<NotToBeHad>() => NOT_STARTED,
        None => FAILED,
    }
}

/// Prints an error, its causes and, when we know one, a hint.
#[expect(clippy::print_stderr, reason = "the one place where errors are printed")]
pub(crate) fn report(error: &anyhow::Error) {
    eprintln!("satchel-vmm: {error:#}");
    if let Some(hint) = boot_error(error).and_then(BootError::hint) {
        eprintln!("{hint}");
    }
}

fn boot_error(error: &anyhow::Error) -> Option<&BootError> {
    error.chain().find_map(|cause| match cause.downcast_ref::<LaunchError>() {
        Some(LaunchError::Boot(boot)) => Some(boot),
        _ => cause.downcast_ref::<BootError>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_machine_is_not_asked_for_when_the_disk_cannot_be_read() {
        let unreadable = || BootError::Disk(std::io::ErrorKind::TimedOut.into());
        assert_eq!(status_of(&LaunchError::from(unreadable()).into()), NOT_STARTED);
        assert_eq!(status_of(&unreadable().into()), NOT_STARTED);
        assert_eq!(status_of(&LaunchError::from(BootError::Endless).into()), NO_BOOT);
        assert_eq!(status_of(&LaunchError::NoDisk.into()), NOT_STARTED);
        assert_eq!(status_of(&anyhow::anyhow!("the machine cannot go on")), FAILED);
    }
}
