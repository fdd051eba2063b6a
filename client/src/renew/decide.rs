//! What a channel wants of a desktop: a pure function of what both are.

use chunk_format::{ManifestId, is_in_rollout};

use crate::remote::{NamedVersion, Rollout};

/// A desktop that follows a channel.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Its first version: names it for ever.
    pub desktop: ManifestId,
    /// The golden version it stands on.
    pub base: NamedVersion,
    /// A golden version that is not taken up as long as the channel names it.
    pub skipped: Option<ManifestId>,
    /// What the channel named when a person moved the desktop elsewhere: nothing is taken up as long as it does.
    pub held: Option<NamedVersion>,
}

/// The golden version a desktop is to move to; none when it is to stay where it is.
///
/// A move that does not reach the desktop leads it to the version before the move at most, and never back. Back leads only a
/// channel that its publisher has taken back.
pub fn due(standing: &Standing, rollout: &Rollout) -> Option<NamedVersion> {
    let Standing { desktop, base, skipped, held } = *standing;
    let target = rollout.version;
    if target.id == base.id || skipped == Some(target.id) || held.is_some_and(|held| held.id == target.id) {
        return None;
    }
    if target.sequence < base.sequence {
        return rollout.rollback.is_some().then_some(target);
    }
    if !rollout.paused && is_in_rollout(desktop, target.id, rollout.percent) {
        return Some(target);
    }
    let before = rollout.previous?;
    (before.sequence > base.sequence && skipped != Some(before.id)).then_some(before)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::remote::RollbackWord;

    fn version(sequence: u64) -> NamedVersion {
        NamedVersion { id: ManifestId::of(&sequence.to_le_bytes()), sequence }
    }

    fn rollout(target: u64, previous: Option<u64>, percent: u8) -> Rollout {
        Rollout {
            version: version(target),
            previous: previous.map(version),
            percent,
            paused: false,
            moved_ms: 0,
            rollback: None,
        }
    }

    fn standing(base: u64) -> Standing {
        Standing { desktop: ManifestId::of(b"desktop"), base: version(base), skipped: None, held: None }
    }

    #[test]
    fn a_channel_that_has_moved_for_all_moves_all() {
        assert_eq!(due(&standing(1), &rollout(2, Some(1), 100)), Some(version(2)));
        assert_eq!(due(&standing(2), &rollout(2, Some(1), 100)), None);
        let skipping = Standing { skipped: Some(version(2).id), ..standing(1) };
        let told = Standing { held: Some(version(2)), ..standing(1) };
        for standing in [skipping, told] {
            assert_eq!(due(&standing, &rollout(2, Some(1), 100)), None);
            assert_eq!(due(&standing, &rollout(3, Some(2), 100)), Some(version(3)));
        }
    }

    #[test]
    fn who_a_move_does_not_reach_follows_the_version_before_it() {
        assert_eq!(due(&standing(1), &rollout(3, Some(2), 0)), Some(version(2)));
        assert_eq!(due(&standing(2), &rollout(3, Some(2), 0)), None);
        assert_eq!(due(&standing(1), &rollout(3, None, 0)), None);
        let paused = Rollout { paused: true, ..rollout(3, Some(2), 100) };
        assert_eq!(due(&standing(1), &paused), Some(version(2)));
        assert_eq!(due(&standing(3), &paused), None, "who has it keeps it");
    }

    #[test]
    fn only_the_publisher_leads_back() {
        let unsigned = rollout(1, None, 100);
        assert_eq!(due(&standing(3), &unsigned), None);
        let word = RollbackWord { newest: 3, signature: String::new() };
        let signed = Rollout { rollback: Some(word), ..unsigned };
        assert_eq!(due(&standing(3), &signed), Some(version(1)));
        // Not while a person wants it elsewhere, who knew of that.
        assert_eq!(due(&Standing { held: Some(version(1)), ..standing(3) }, &signed), None);
    }

    fn any_rollout() -> impl Strategy<Value = Rollout> {
        let word = proptest::option::of(Just(RollbackWord { newest: 9, signature: String::new() }));
        (1u64..8, proptest::option::of(1u64..8), 0u8..=100, any::<bool>(), word).prop_map(
            |(target, previous, percent, paused, rollback)| Rollout {
                paused,
                rollback,
                ..rollout(target, previous, percent)
            },
        )
    }

    fn any_standing() -> impl Strategy<Value = Standing> {
        let skipped = proptest::option::of(1u64..8);
        let held = proptest::option::of(1u64..8);
        (any::<[u8; 32]>(), 1u64..8, skipped, held).prop_map(|(desktop, base, skipped, held)| Standing {
            desktop: ManifestId::from_bytes(desktop),
            base: version(base),
            skipped: skipped.map(|sequence| version(sequence).id),
            held: held.map(version),
        })
    }

    proptest! {
        #[test]
        fn a_desktop_comes_to_rest_where_the_rollout_leads(
            standing in any_standing(), rollout in any_rollout(), raised in 0u8..=100,
        ) {
            let Some(to) = due(&standing, &rollout) else { return Ok(()) };
            // Only to what the channel names, never to what is skipped, and back with the publisher's word only.
            prop_assert!(to == rollout.version || Some(to) == rollout.previous);
            prop_assert_ne!(Some(to.id), standing.skipped);
            prop_assert_ne!(Some(rollout.version), standing.held);
            prop_assert!(to.sequence > standing.base.sequence || rollout.rollback.is_some());
            // One step is enough: nobody goes to and fro between two versions of one roll-out.
            let after = Standing { base: to, ..standing };
            prop_assert!(due(&after, &rollout).is_none() || rollout.rollback.is_some());
            // Reaching more desktops takes the target from nobody.
            let wider = Rollout { percent: rollout.percent.max(raised), ..rollout.clone() };
            if to == rollout.version {
                prop_assert_eq!(due(&standing, &wider), Some(to));
            }
        }
    }
}
