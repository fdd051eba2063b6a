//! What to do next: advice for the failures we know, found in an error's chain of causes and printed once, at the
//! edge.

use std::error::Error;
use std::ffi::OsStr;
use std::io;
use std::path::Path;

use crate::adopt::AdoptError;
use crate::cache::CacheError;
use crate::create::CreateError;
use crate::desktop::DesktopError;
use crate::engine::EngineError;
use crate::export::ExportError;
use crate::fetch::FillError;
use crate::files::copy::CopyError;
use crate::fork::ForkReason;
use crate::image::ImageError;
use crate::metrics::MetricsError;
use crate::mount::{MountError, PointError};
use crate::overlay::OverlayError;
use crate::publish::PublishError;
use crate::remote::RemoteError;
use crate::remove::RemoveError;
use crate::renew::RenewError;
use crate::rollback::RollbackError;
use crate::run::RunError;
use crate::serve::{IdentityError, ServeError};
use crate::session::SessionError;
use crate::source::{FailureKind, SourceError, SourceListError};
use crate::state::StateError;
use crate::succeed::InUseError;
use crate::sync::SyncError;
use crate::upstream::CommitError;
use crate::versions::VersionError;

/// An error with its causes in one line, and the advice there is for it in another.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    match hint(error) {
        Some(hint) => format!("{}\nhint: {hint}", chain(error)),
        None => chain(error),
    }
}

/// An error and its causes in one line; a cause whose words the error already has is not repeated.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let said = source.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = source.source();
    }
    text
}

/// The advice for an error, if there is some.
pub fn hint(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(hint) = hint_of(error) {
            return Some(hint);
        }
        cause = error.source();
    }
    None
}

fn hint_of(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<RemoteError>() {
        return of_remote(error);
    }
    if let Some(error) = error.downcast_ref::<StateError>() {
        return of_state(error);
    }
    if let Some(error) = error.downcast_ref::<SessionError>() {
        return of_session(error);
    }
    if let Some(error) = error.downcast_ref::<VersionError>() {
        return of_version(error);
    }
    if let Some(error) = error.downcast_ref::<MountError>() {
        return of_mount(error);
    }
    if let Some(SyncError::NothingToFork { reason }) = error.downcast_ref() {
        return of_nothing_to_fork(reason);
    }
    if let Some(error) = error.downcast_ref::<PointError>() {
        return of_point(error);
    }
    if let Some(EngineError::NotInstalled { package, .. }) = error.downcast_ref() {
        return Some(format!("on Debian, `apt-get install {package}` has it"));
    }
    if let Some(AdoptError::NoDesktop { .. } | AdoptError::NoFork { .. }) = error.downcast_ref() {
        return Some("`satchel forks` lists the forks there are".to_owned());
    }
    if let Some(AdoptError::DesktopGone { desktop, fork, image }) = error.downcast_ref() {
        return Some(format!(
            "`satchel run {fork}` goes on with it under its own name; to have it as {desktop} again, begin that anew with \
             `satchel create {desktop} --image {image}` and give the same command once more"
        ));
    }
    if let Some(AdoptError::OtherImage { fork, .. }) = error.downcast_ref() {
        return Some(format!("`satchel run {fork}` goes on with the fork under its own name"));
    }
    if let Some(AdoptError::DoneBefore { desktop, .. }) = error.downcast_ref() {
        return Some(format!(
            "`satchel history {desktop}` shows it; to put the disks of before back, give the same command once more"
        ));
    }
    if let Some(error) = error.downcast_ref::<RenewError>() {
        return of_renewal(error);
    }
    if let Some(MetricsError::Listen { source, .. }) = error.downcast_ref() {
        return of_listening(source);
    }
    if let Some(error) = error.downcast_ref::<ServeError>() {
        return of_serving(error);
    }
    let text = if let Some(EngineError::NoKvm { .. }) = error.downcast_ref() {
        "`--engine qemu` runs the desktop all the same, more slowly; for /dev/kvm, be in the group kvm"
    } else if let Some(RunError::Machine { .. }) = error.downcast_ref() {
        "what it had flushed is safe, as after a power cut; start it again, with another `--engine` if that fails too"
    } else if let Some(EngineError::NoScreen) = error.downcast_ref() {
        "use `--engine qemu` with this screen, or `--display none`"
    } else if error.downcast_ref::<CommitError>().is_some_and(|e| matches!(e, CommitError::HeadMoved { .. }))
    {
        "someone published meanwhile: run the same command again, it builds on the new version"
    } else if error.downcast_ref::<CommitError>().is_some_and(|e| matches!(e, CommitError::LeaseHeld { .. }))
    {
        "it is that machine's until what was written there is synced and it is unmounted; `--take`, of `satchel run` and \
         `satchel mount`, takes it: what was not synced there becomes a fork"
    } else if let Some(RemoveError::WorkOf { .. }) = error.downcast_ref() {
        "`satchel adopt` makes the fork the desktop, `satchel copy` takes files out of it; with `--force` it is removed, and what is not \
         synced becomes another fork"
    } else if let Some(InUseError::Unsynced { .. }) = error.downcast_ref() {
        "sync them first (`satchel sync DESKTOP`): they are then a version like any, that can be gone back to"
    } else if let Some(RollbackError::NoSuchDesktop { .. }) = error.downcast_ref() {
        "see `satchel desktops`"
    } else if let Some(RemoveError::NoSuchDesktop { .. }) = error.downcast_ref() {
        "see `satchel desktops` and `satchel forks`"
    } else if let Some(RemoveError::OnlyHere { .. }) = error.downcast_ref() {
        "`satchel sync DESKTOP` sends it; `--force` removes it all the same"
    } else if let Some(RemoveError::NotHeard { .. }) = error.downcast_ref() {
        "give the same command again: `satchel desktops` shows whether it is still there"
    } else if let Some(PublishError::OtherPublisher { .. }) = error.downcast_ref() {
        "publish from the machine and user that published it before (the key is publisher.key in its state directory)"
    } else if let Some(PublishError::OverBudget { .. }) = error.downcast_ref() {
        "see above what it changes; allow more with `--max-update`, or publish a smaller change: what was sent is kept for then"
    } else if let Some(CopyError::Exists { .. }) = error.downcast_ref() {
        "choose another place, or replace it with --force"
    } else if let Some(CopyError::NoTool { .. }) = error.downcast_ref() {
        "on Debian, `apt-get install e2fsprogs` has it"
    } else if let Some(CopyError::NoFileSystem { .. }) = error.downcast_ref() {
        "only ext2, ext3 and ext4 are read and written, and a disk gets its file system at the desktop's first start; `satchel browse DESKTOP DIR` \
         says what is there"
    } else if let Some(CopyError::Full { .. }) = error.downcast_ref() {
        "make room in it: run the desktop and delete something there, or copy less"
    } else if error.downcast_ref::<ExportError>().is_some_and(ExportError::is_want_of_room) {
        "free some space there, or use a larger disk; what is there is kept, and the same command goes on"
    } else if let Some(CacheError::InUse { .. }) = error.downcast_ref() {
        "unmount the desktop that uses it first"
    } else if let Some(FillError::NoSpace { .. }) = error.downcast_ref() {
        "nothing was fetched; free some space on the disk that holds the state directory"
    } else if let Some(FillError::NoRoom { .. }) = error.downcast_ref() {
        "give it more with --cache-size, or free some space on the disk that holds the state directory"
    } else if let Some(SourceListError::NoSuch { .. }) = error.downcast_ref() {
        "`satchel source DESKTOP` lists them"
    } else if let Some(OverlayError::Full { .. }) = error.downcast_ref() {
        "nothing was lost; free some space on the disk that holds the state directory, or, where the desktop is pinned, the \
         space of what can be fetched again: `satchel pin DESKTOP --unpin`"
    } else if let Some(OverlayError::Damaged { .. } | OverlayError::Failed { .. }) = error.downcast_ref() {
        DAMAGED_DESKTOP
    } else if let Some(DesktopError::Damaged { .. } | DesktopError::BadVersion { .. }) = error.downcast_ref()
    {
        DAMAGED_DESKTOP
    } else if let Some(CreateError::Exists { .. }) = error.downcast_ref() {
        "choose another name, or use that one: see `satchel desktops`"
    } else if let Some(ImageError::Changed { .. }) = error.downcast_ref() {
        "stop what writes to it, the machine whose disk it is for example, and run the same command again"
    } else if let Some(ImageError::NotADisk { .. }) = error.downcast_ref() {
        "if it is a disk all the same, publish it with --force"
    } else if let Some(DesktopError::Foreign { .. }) = error.downcast_ref() {
        "the directory was copied or renamed; give each desktop the directory it was made in"
    } else if let Some(SourceError { kind: FailureKind::Damaged, .. }) = error.downcast_ref() {
        "the server's store is damaged or altered: tell its operator to run `satchel-server verify`"
    } else {
        return None;
    };
    Some(text.to_owned())
}

const DAMAGED_DESKTOP: &str = "check the disk that holds the state directory; what was synced is safe on the server, \
     and moving the desktop's directory away lets it start again from there";

fn of_remote(error: &RemoteError) -> Option<String> {
    let text = match error {
        RemoteError::Unreachable { url, .. } | RemoteError::Stalled { url, .. } => {
            format!("is the server running there, and does the network reach it? (`curl -k {url}/healthz`)")
        }
        RemoteError::OtherCertificate { url, .. } => format!(
            "ask the server's operator; if the certificate was replaced, log in again: \
             `satchel login {url} --token TOKEN --fingerprint SHA256:...`"
        ),
        RemoteError::UnknownCertificate { found, .. } => format!(
            "compare it with the line `fingerprint:` that `satchel-server fingerprint DIR` prints on the server; if it is the \
             same, add `--fingerprint {found}`"
        ),
        RemoteError::BadToken { .. } => NEW_TOKEN.to_owned(),
        RemoteError::NotThisInterface { .. } => {
            "is this the address of a Satchel server? If so, client and server are of different versions: update the \
             older one"
                .to_owned()
        }
        RemoteError::Refused { code, .. } => match code.as_str() {
            "unauthorized" => NEW_TOKEN.to_owned(),
            "forbidden" => "the token's role or user does not allow this; ask the server's operator".to_owned(),
            "store_full" => "tell the server's operator; once there is space, repeating the command continues from what was \
                 stored before"
                .to_owned(),
            "busy" | "store_unreachable" => "try again in a moment".to_owned(),
            "lease_held" => "unmount it there, or take it first with `--take`, of `satchel run` and `satchel mount`: what was not \
                 synced there becomes a fork"
                .to_owned(),
            "head_moved" => "look at what is new (`satchel history DESKTOP`), and give the same command again".to_owned(),
            "internal" => "tell the server's operator: the server's log has the cause, and `satchel-server verify` \
                 finds what is damaged in its store"
                .to_owned(),
            _ => return None,
        },
        _ => return None,
    };
    Some(text)
}

const NEW_TOKEN: &str = "get a new token from the server's operator (`satchel-server token DIR --user NAME --role \
     ROLE`) and log in again: `satchel login URL --token TOKEN`";

fn of_state(error: &StateError) -> Option<String> {
    let text = match error {
        StateError::NotLoggedIn => "`satchel login URL --token TOKEN --fingerprint SHA256:...`",
        StateError::NotThere { .. } => {
            "if it is on a stick or another disk, is that plugged in and mounted? \
             `satchel login URL --token TOKEN --fingerprint SHA256:...` begins anew there"
        }
        StateError::Unfit { .. } => {
            "keep the state directory on ext4, btrfs or xfs: `satchel --state DIR login ...`; a stick with exFAT or FAT can hold an \
             image (`satchel export IMAGE DIR`)"
        }
        StateError::Io { source, .. } => return of_writing(source),
        StateError::OtherServer { .. } => {
            "use another state directory for this server: `satchel --state DIR login ...`"
        }
        StateError::OtherUser { known, .. } => {
            return Some(format!(
                "log in with a token of {known}, or use another state directory: `satchel --state DIR login ...`"
            ));
        }
        StateError::Damaged { path, .. } => return Some(of_damaged(path).to_owned()),
        _ => return None,
    };
    Some(text.to_owned())
}

/// What to do where nothing can be written.
fn of_writing(error: &io::Error) -> Option<String> {
    let text = match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            "the state directory is on a file system that may only be read: mount it so that it can be written \
             (`mount -o remount,rw`); until then `satchel status DESKTOP` works"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

/// What to do about a damaged file of the state directory.
fn of_damaged(path: &Path) -> &'static str {
    match path.file_name().and_then(OsStr::to_str) {
        Some("publisher.key") => {
            "put the file back from a backup: versions signed with another key would not be taken for this \
             publisher's"
        }
        Some("machine.key") => "move the file away: this machine then signs its versions with a new key",
        Some("pins.json") => {
            "move the file away if you are sure of the server: it is made anew with the keys its images have now"
        }
        _ => {
            "move the file away and log in again: logging in makes it anew (`satchel login URL --token TOKEN`)"
        }
    }
}

fn of_session(error: &SessionError) -> Option<String> {
    let text = match error {
        SessionError::InUse { .. } => {
            "see `satchel status DESKTOP`; it is free once that process has ended: a mount, a run, or `satchel cache serve`"
        }
        SessionError::NoSuchDesktop { .. } => NO_DESKTOP,
        SessionError::Lock { source, .. } => return of_writing(source),
        SessionError::LeaseHeld { .. } => {
            "`--ask` has that machine sync and hand it over, `--read-only` looks at it without writing, `--take` takes it: \
             what was not synced there becomes a fork, and nothing is lost"
        }
        SessionError::LeaseExpired { .. } => {
            "connect to a network once. What was written here is kept, and is synced then"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

fn of_nothing_to_fork(reason: &ForkReason) -> Option<String> {
    let text = match reason {
        ForkReason::LeaseHeld { .. } => {
            "make the version there; or `--ask`, of `satchel run` and `satchel mount`, has that machine sync and hand the desktop \
             over, `--take` takes it: what was not synced there becomes a fork"
        }
        ForkReason::HeadMoved { .. } => {
            "give the same command again: the version is then made of the newest one"
        }
        ForkReason::Gone => return None,
    };
    Some(text.to_owned())
}

fn of_listening(error: &io::Error) -> Option<String> {
    let text = match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there: choose another port",
        io::ErrorKind::PermissionDenied => "ports below 1024 need privileges: choose another",
        io::ErrorKind::AddrNotAvailable => "no network interface of this machine has this address",
        _ => return None,
    };
    Some(text.to_owned())
}

fn of_serving(error: &ServeError) -> Option<String> {
    let text = match error {
        ServeError::Listen { source, .. } => return of_listening(source),
        ServeError::InUse { .. } => "unmount it, or switch its machine off, and serve it then",
        ServeError::NotHere { .. } => {
            "serve it where it was run or pinned; `satchel pin DESKTOP` fetches all of one"
        }
        ServeError::Cache(CacheError::NotThere { .. }) => {
            "nothing was fetched yet; `satchel pin DESKTOP` fetches all of it"
        }
        ServeError::Identity(IdentityError::Damaged { .. }) => {
            "move the file away, or serve with `--new-address`: the other machines then need the new address"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

const NO_DESKTOP: &str = "see `satchel desktops`, or make it: `satchel create DESKTOP --image IMAGE`";

fn of_version(error: &VersionError) -> Option<String> {
    let text = match error {
        VersionError::Bad { .. } | VersionError::WrongKey { .. } | VersionError::OtherSubject { .. } => {
            "it is not used. Tell the server's operator: `satchel-server verify` finds what was altered"
        }
        VersionError::PublisherChanged { .. } => {
            "ask who publishes the image; if the change is right, remove the image from pins.json in the state \
             directory"
        }
        VersionError::WentBack { image, found, .. } => {
            return Some(format!(
                "an older version may have known holes. If it is meant, name it in place of the channel: `{image}@{found}`, or, for a \
                 desktop that there is, `satchel rebase DESKTOP --to {found}`"
            ));
        }
        VersionError::NoSuchImage { .. } => "see `satchel images`",
        VersionError::NoSuchDesktop { .. } => NO_DESKTOP,
        VersionError::NoSuch(_) => "see `satchel images` and `satchel history`",
        VersionError::Pruned { .. } => {
            "see `satchel history` for those there are; `satchel retention` says how many are kept"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

fn of_renewal(error: &RenewError) -> Option<String> {
    let text = match error {
        RenewError::NoAnswer => "the desktop stays as it is; try again once the server can be reached",
        RenewError::Unfit { .. } => {
            "the desktop stays as it is; tell the image's publisher, or name another version: `satchel rebase DESKTOP \
             --to VERSION`"
        }
        RenewError::Stranded { .. } => {
            "what was changed here is kept on this machine. Ask the server's operator for a newer backup, or copy what you need out \
             of the mounted desktop (`satchel mount DESKTOP DIR`) into another one"
        }
        RenewError::Nowhere(_) => {
            "see `satchel status DESKTOP` for where it is, and `satchel history --image IMAGE` for where it can go"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

fn of_mount(error: &MountError) -> Option<String> {
    let MountError::Fuse { source, .. } = error else { return None };
    let text = match source.kind() {
        io::ErrorKind::NotFound => "install FUSE: `apt install fuse3`",
        io::ErrorKind::PermissionDenied => "may you use /dev/fuse, and is the directory yours?",
        _ => {
            "is FUSE there (`ls -l /dev/fuse`, Debian package fuse3)? `--allow-other` needs `user_allow_other` in /etc/fuse.conf"
        }
    };
    Some(text.to_owned())
}

fn of_point(error: &PointError) -> Option<String> {
    let text = match error {
        PointError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            "make the directory first: `mkdir -p DIR`"
        }
        PointError::NotEmpty { .. } => "mount on a new directory: what is in this one would be hidden",
        PointError::Taken { .. } => "see `findmnt DIR`; unmount it first",
        PointError::Busy { .. } => "close the programs that use the disks (`fuser -vm DIR` lists them)",
        _ => return None,
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use chunk_format::Name;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot do it")]
    struct Outer(#[source] StateError);

    #[test]
    fn advice_is_found_anywhere_in_the_chain_and_causes_are_said_once() {
        let error = Outer(StateError::NotLoggedIn);
        let text = explain(&error);
        assert!(text.starts_with("cannot do it: this machine is not logged in"), "{text}");
        assert!(text.contains("\nhint: `satchel login"), "{text}");
        let transparent = MountError::Point(PointError::NotEmpty { directory: "/x".into() });
        assert_eq!(chain(&transparent), "/x is not an empty directory");
        assert!(hint(&transparent).is_some());
        let desktop: Name = "nope".parse().unwrap();
        let adopt = AdoptError::NoDesktop { desktop: desktop.clone() };
        assert!(hint(&adopt).unwrap().contains("satchel forks"));
        assert!(hint(&VersionError::NoSuchDesktop { desktop }).unwrap().contains("satchel desktops"));
        assert!(hint(&RenewError::NoAnswer).is_some());
    }
}
