//! What is attempted is kept whole or not at all, whenever power goes.

use super::*;

/// How an attempt ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Kept,
    Undone,
    /// Power goes in the nth sync call from its beginning.
    CutOff {
        syncs: u64,
    },
}

pub(super) fn end() -> impl Strategy<Value = End> {
    prop_oneof![Just(End::Kept), Just(End::Undone), (1u64..20).prop_map(|syncs| End::CutOff { syncs })]
}

impl World {
    pub(super) async fn attempt(&mut self, sector: usize, len: usize, end: End) -> Result<(), TestCaseError> {
        // What a part of a block is merged with is here, whatever happens.
        let sectors = self.expected[1].0.len();
        let before = self.read(true, 0..sectors).await?;
        prop_assert_eq!(&before, &self.expected[1].now());
        if let End::CutOff { syncs } = end {
            self.volume.cut_power_at(PowerCut::AtSync(self.volume.syncs() + syncs));
        }
        let range = self.range(true, sector, len);
        self.next_tag += 1;
        let (tag, mut after) = (self.next_tag, before.clone());
        after[range.clone()].fill(tag);
        let bytes = bytes_of(&vec![tag; range.len()]);
        let desktop = self.desktop.take().unwrap();
        let done = async {
            desktop.begin_attempt().map_err(drop)?;
            let desktop = desktop.reassembled().map_err(drop)?;
            let at = (range.start * SECTOR) as u64;
            desktop.disks[1].write(at, &bytes).await.map_err(drop)?;
            match end {
                End::Undone => desktop.undo_attempt(),
                End::Kept | End::CutOff { .. } => desktop.keep_attempt(),
            }
            .map_err(drop)?;
            desktop.reassembled().map_err(drop)
        };
        match (done.await, end) {
            (Ok(desktop), End::Kept | End::Undone) => {
                // The attempt begins with a flush, and its disks are put together anew.
                self.expected.iter_mut().for_each(Expected::flushed);
                if let Some(golden) = &self.golden {
                    self.expected[0] = golden.clone();
                }
                self.desktop = Some(desktop);
                if matches!(end, End::Kept) {
                    // What it was made on is frozen below it, and synced first.
                    self.candidates.push([self.synced_system(), before]);
                    self.expected[1].push(range, tag);
                    self.expected[1].flushed();
                }
                let found = self.read(true, 0..sectors).await?;
                prop_assert_eq!(found, self.expected[1].now());
                prop_assert!(!self.desktop().is_read_only());
            }
            (Err(()), End::Kept | End::Undone) => return Err(TestCaseError::fail("an attempt failed")),
            (done, End::CutOff { .. }) => {
                let is_kept = done.is_ok();
                if let Ok(desktop) = done {
                    desktop.fetcher.stop();
                }
                self.reboot();
                let found = self.read(true, 0..sectors).await?;
                // Of what was not flushed before, what is allowed may be there; of the attempt, all or nothing.
                let is_there = found[range.clone()].contains(&tag);
                prop_assert!(is_there || !is_kept, "what was kept is lost");
                if is_there {
                    prop_assert_eq!(found, after);
                    self.expected[1].push(range, tag);
                    self.expected[1].flushed();
                }
                self.take_stock(true).await?;
            }
        }
        Ok(())
    }
}

/// At every sync call, one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_attempted_is_kept_whole_or_not_at_all() {
    for syncs in 1..30 {
        for end in [End::CutOff { syncs }, End::Kept, End::Undone] {
            let mut world = World::new(vec![7, 3, 11, syncs.try_into().unwrap()], SystemMode::Own);
            world.apply(&Op::Write { home: true, sector: 4, len: 40 }).await.unwrap();
            world.attempt(1, 70, end).await.unwrap();
            // It is a desktop as any other after that.
            world.apply(&Op::Write { home: true, sector: 2, len: 3 }).await.unwrap();
            world.sync(None).await.unwrap();
            world.desktop().fetcher.stop();
        }
    }
}
