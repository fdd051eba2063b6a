//! Guests that hold still for the instant in which their disks are frozen.

use std::convert::Infallible;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

/// Whoever runs a guest on the disks.
///
/// Without one, a frozen disk is what a power cut would leave: its file systems replay their journals. A guest that held
/// still has written out what its programs wrote, and needs no replay.
pub trait Guest: Send + Sync + 'static {
    /// Has the guest's file systems write out what they hold and keep back writes until the answer is dropped. None when
    /// that cannot be had in a bounded time; the disks are frozen all the same.
    fn hold_still(&self) -> BoxFuture<'_, Option<Still>>;
}

/// A guest that holds still until this is dropped.
#[derive(Debug)]
pub struct Still {
    _until_dropped: oneshot::Sender<Infallible>,
}

impl Still {
    /// A guest that holds still, and what tells when it may go on.
    pub fn new() -> (Self, oneshot::Receiver<Infallible>) {
        let (until_dropped, dropped) = oneshot::channel();
        (Self { _until_dropped: until_dropped }, dropped)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chunk_format::SystemMode;

    use super::super::tests::{World, bytes_of, subject, syncer};
    use super::*;
    use crate::disk::Disk;
    use crate::sync::Syncer;
    use crate::upstream::Upstream;

    /// A guest that writes out one last block, and then holds still, or never says so.
    struct LastWrite {
        disk: Arc<Disk>,
        holds: bool,
    }

    impl Guest for LastWrite {
        fn hold_still(&self) -> BoxFuture<'_, Option<Still>> {
            Box::pin(async {
                self.disk.write(4096, &bytes_of(&[8; 8])).await.unwrap();
                match self.holds {
                    true => Some(Still::new().0),
                    false => std::future::pending().await,
                }
            })
        }
    }

    async fn begins(disk: &Disk) -> [u8; 2] {
        let mut found = [[0]; 2];
        for (offset, byte) in [0, 4096].into_iter().zip(&mut found) {
            disk.read(offset, byte).await.unwrap();
        }
        [found[0][0], found[1][0]]
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_guest_writes_out_before_it_holds_still_is_in_the_version() {
        let world = World::new(Vec::new(), SystemMode::Own);
        let desktop = world.desktop();
        let home = Arc::clone(&desktop.disks[1]);
        home.write(0, &bytes_of(&[7; 8])).await.unwrap();
        let guest = Arc::new(LastWrite { disk: Arc::clone(&home), holds: true });
        let syncer = Syncer { guest: Some(guest), ..syncer(&world.server) };
        let report = syncer.sync(desktop, None).await.unwrap();
        assert!(report.held_still);
        assert!(!desktop.has_changes(), "the last write is above the version that it belongs to");
        assert_eq!(begins(&home).await, [7, 8]);
        desktop.fetcher.stop();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_sync_given_up_while_the_guest_makes_up_its_mind_leaves_what_the_next_one_can_use() {
        let world = World::new(Vec::new(), SystemMode::Own);
        let desktop = world.desktop();
        let home = Arc::clone(&desktop.disks[1]);
        home.write(0, &bytes_of(&[7; 8])).await.unwrap();
        let guest = Arc::new(LastWrite { disk: Arc::clone(&home), holds: false });
        let waiting = Syncer { guest: Some(guest), ..syncer(&world.server) };
        tokio::select! {
            report = waiting.sync(desktop, None) => panic!("{report:?}"),
            () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
        }
        // Above what is frozen, though nobody said that it is.
        home.write(4096, &bytes_of(&[9; 8])).await.unwrap();
        let report = syncer(&world.server).sync(desktop, None).await.unwrap();
        assert_eq!(
            report.version.unwrap().sequence,
            3,
            "one version of what was frozen, and one of the rest"
        );
        assert!(!report.held_still);
        assert_eq!(begins(&home).await, [7, 9]);
        assert!(!desktop.has_changes());
        desktop.fetcher.stop();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_version_with_a_note_is_made_even_if_nothing_changed() {
        for mode in [SystemMode::Own, SystemMode::Renew] {
            let world = World::new(Vec::new(), mode);
            let desktop = world.desktop();
            assert!(syncer(&world.server).sync(desktop, None).await.unwrap().version.is_none());
            for sequence in 2..4 {
                let note = format!("before step {sequence}");
                let report = syncer(&world.server).sync(desktop, Some(note.clone())).await.unwrap();
                let version = report.version.unwrap();
                assert_eq!((version.sequence, version.note), (sequence, Some(note)));
                assert_eq!(desktop.store.record().generations.len(), 1);
            }
            assert_eq!(world.server.head(&subject()).await.unwrap().unwrap().sequence, 3);
            desktop.fetcher.stop();
        }
    }
}
