//! Rules about channels that client and server, or publisher and client, must agree on to the bit.

use sha2::{Digest, Sha256};

use crate::id::ManifestId;
use crate::namespace::Name;

/// Whether a staged move of a channel reaches a desktop: the SHA-256 of `satchel-rollout`, a zero byte, the desktop's id and
/// the target version's id; its first eight bytes as a little-endian number, modulo 100, lie below the percentage.
///
/// A desktop has the same answer for the same target wherever it is asked, raising the percentage takes nobody out, and
/// another target reaches other desktops first.
pub fn is_in_rollout(desktop: ManifestId, target: ManifestId, percent: u8) -> bool {
    let mut hasher = Sha256::new();
    hasher.update(b"satchel-rollout\0");
    hasher.update(desktop.as_bytes());
    hasher.update(target.as_bytes());
    let hash = hasher.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    u64::from_le_bytes(first) % 100 < u64::from(percent)
}

/// What a publisher signs to take a channel back to an older version: `newest` is the newest version of the image at that
/// time, by its number. No manifest begins like it, so that neither signature can stand for the other.
pub fn rollback_statement(image: &Name, channel: &Name, version: ManifestId, newest: u64) -> Vec<u8> {
    format!("satchel-rollback 1\nimage {image}\nchannel {channel}\nversion {version}\nnewest {newest}\n")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> ManifestId {
        ManifestId::of(&number.to_le_bytes())
    }

    #[test]
    fn a_rollout_reaches_about_its_share_and_only_grows() {
        let target = id(1_000_000);
        let reached =
            |percent| (0..1000).filter(|n| is_in_rollout(id(*n), target, percent)).collect::<Vec<_>>();
        assert!(reached(0).is_empty());
        assert_eq!(reached(100).len(), 1000);
        let (tenth, half) = (reached(10), reached(50));
        assert!((60..140).contains(&tenth.len()), "{}", tenth.len());
        assert!((430..570).contains(&half.len()), "{}", half.len());
        assert!(tenth.iter().all(|n| half.contains(n)));
        // Another version reaches others first.
        let other = (0..1000).filter(|n| is_in_rollout(id(*n), id(2_000_000), 10)).collect::<Vec<_>>();
        assert_ne!(tenth, other);
    }

    /// The rule is a format: another program must come to the same answers.
    #[test]
    fn the_rule_is_the_one_of_the_documents() {
        let shares: Vec<u8> = (0..6)
            .map(|n| (0..=100).find(|percent| is_in_rollout(id(n), id(7), *percent)).unwrap())
            .collect();
        assert_eq!(shares, SHARES);
    }

    const SHARES: [u8; 6] = [15, 1, 73, 2, 99, 23];

    #[test]
    fn a_rollback_names_all_it_is_about() {
        let statement = rollback_statement(&"debian".parse().unwrap(), &"stable".parse().unwrap(), id(1), 3);
        let expected =
            format!("satchel-rollback 1\nimage debian\nchannel stable\nversion {}\nnewest 3\n", id(1));
        assert_eq!(String::from_utf8(statement).unwrap(), expected);
    }
}
