//! Forks: where work goes that may not be a desktop's next version. A fork is a desktop of its own: it has a history,
//! boots, is browsed and synced like any; its first version follows one of the desktop it began on.

use chunk_format::{FormatError, Manifest, ManifestId, Name, SecretKey, Subject};
use serde::{Deserialize, Serialize};

use crate::desktop::Version;

/// Letters of the desktop's name and of the machine's that a fork's name keeps; 64 is the limit of a name.
const KEPT_DESKTOP: usize = 30;
const KEPT_MACHINE: usize = 16;

/// A fork that a sync began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forked {
    /// The fork.
    pub fork: Name,
    /// The desktop it began on.
    pub of: Name,
    /// Why the work could not be that one's next version; none when an earlier sync found out.
    pub reason: Option<ForkReason>,
}

/// Why work could not be the next version of its desktop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForkReason {
    /// The head is not the version the work began on.
    HeadMoved {
        /// The head.
        sequence: u64,
        /// The machine it was made on.
        machine: String,
    },
    /// Another machine holds the desktop's lease.
    LeaseHeld {
        /// The machine.
        machine: String,
    },
    /// The server does not know what the work began on any more.
    Gone,
}

impl std::fmt::Display for ForkReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::HeadMoved { sequence, machine } => {
                write!(f, "version {sequence} was made on {machine} meanwhile")
            }
            Self::LeaseHeld { machine } => write!(f, "it is in use on {machine}"),
            Self::Gone => f.write_str("the server does not know what it began on any more"),
        }
    }
}

/// The same version as the first of a fork. `digits` of the version's id tell forks of one machine apart.
///
/// # Errors
/// What the formats say.
pub(crate) fn forked(version: &Version, digits: usize, key: &SecretKey) -> Result<Version, FormatError> {
    let Subject::Desktop { owner, desktop } = &version.manifest.subject else {
        return Err(FormatError::Field {
            what: "manifest",
            field: "subject",
            found: "an image".to_owned(),
            expected: "a desktop".to_owned(),
        });
    };
    let desktop = fork_name(desktop, &version.manifest.machine, &version.id, digits)?;
    let subject = Subject::Desktop { owner: owner.clone(), desktop };
    let manifest = Manifest { subject, ..version.manifest.clone() };
    let bytes = manifest.encode()?;
    Version::decode(bytes.clone(), key.sign(&bytes))
}

/// `work.laptop-b-3fa2`: desktop, machine, and the first digits of a version's id.
fn fork_name(desktop: &Name, machine: &str, id: &ManifestId, digits: usize) -> Result<Name, FormatError> {
    let kept: String = desktop.as_str().chars().take(KEPT_DESKTOP).collect();
    let machine: String = machine
        .chars()
        .map(|letter| letter.to_ascii_lowercase())
        .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
        .take(KEPT_MACHINE)
        .collect();
    let machine = match machine.trim_matches('-') {
        "" => "machine",
        machine => machine,
    };
    let id: String = id.to_string().chars().take(digits).collect();
    format!("{}.{machine}-{id}", kept.trim_end_matches('.')).parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forks_name_says_where_it_comes_from_and_is_always_a_name() {
        let id = ManifestId::of(b"a version");
        let name = |desktop: &str, machine: &str, digits| {
            fork_name(&desktop.parse().unwrap(), machine, &id, digits).unwrap().to_string()
        };
        let start = &id.to_string()[..4];
        assert_eq!(name("work", "laptop-b", 4), format!("work.laptop-b-{start}"));
        assert_eq!(name("work", "Anna's Laptop.local", 4), format!("work.anna-s-laptop-lo-{start}"));
        assert_eq!(name("work", "日本", 4), format!("work.machine-{start}"));
        assert!(name(&"x".repeat(64), &"y".repeat(128), 16).len() <= 64);
        assert_ne!(name("work", "a", 4), name("work", "a", 8));
    }
}
