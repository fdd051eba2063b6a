use chunk_format::{DiskRole, DiskSize};
use proptest::prelude::*;

use super::*;
use crate::volume::{PowerCut, SimulatedVolume};

const BLOCKS: u64 = 24;

fn identity(generation: u64) -> OverlayIdentity {
    OverlayIdentity {
        desktop: ManifestId::of(b"desktop"),
        role: DiskRole::System,
        size: DiskSize::new(BLOCKS * BLOCK_BYTES).unwrap(),
        generation,
    }
}

fn create(volume: &SimulatedVolume) -> Result<Overlay, OverlayError> {
    let overlay = Overlay::create(volume, identity(1), ManifestId::of(b"head"), 77)?;
    volume.sync_names().map_err(|e| io_error("create", "names", e))?;
    Ok(overlay)
}

/// A block's content in the model: 0 stands for what lies below, 1 for zeros, others for data of that value.
fn observe(overlay: &Overlay, block: u64) -> u8 {
    match overlay.state(BlockIndex(block)) {
        BlockState::Base => 0,
        BlockState::Zero => 1,
        BlockState::Data => {
            let mut bytes = vec![0; usize::try_from(BLOCK_BYTES).unwrap()];
            overlay.read_data(block * BLOCK_BYTES, &mut bytes).unwrap();
            // Sectors may differ after a crash; each must be an allowed value of its own.
            if bytes[0] == 0 { 1 } else { bytes[0] }
        }
    }
}

/// Every distinct value among a block's sectors.
fn observe_sectors(overlay: &Overlay, block: u64) -> Vec<u8> {
    if overlay.state(BlockIndex(block)) != BlockState::Data {
        return vec![observe(overlay, block)];
    }
    let mut bytes = vec![0; usize::try_from(BLOCK_BYTES).unwrap()];
    overlay.read_data(block * BLOCK_BYTES, &mut bytes).unwrap();
    let mut values: Vec<u8> = bytes
        .chunks(512)
        .map(|sector| {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a torn sector in block {block}");
            if sector[0] == 0 { 1 } else { sector[0] }
        })
        .collect();
    values.sort_unstable();
    values.dedup();
    values
}

#[derive(Clone, Debug)]
enum Op {
    Write { block: u64, len: u64, value: u8 },
    Zero { block: u64, len: u64 },
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..BLOCKS, 1u64..6, 2u8..=255).prop_map(|(block, len, value)| Op::Write { block, len, value }),
        2 => (0..BLOCKS, 1u64..6).prop_map(|(block, len)| Op::Zero { block, len }),
        2 => Just(Op::Flush),
    ]
}

/// What each block may be after a crash: its value at the last completed flush, and every later one.
struct Allowed(Vec<Vec<u8>>);

impl Allowed {
    fn new() -> Self {
        Self(vec![vec![0]; usize::try_from(BLOCKS).unwrap()])
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Write { block, len, value } => self.push(block, len, value),
            Op::Zero { block, len } => self.push(block, len, 1),
            Op::Flush => self.0.iter_mut().for_each(|values| drop(values.drain(..values.len() - 1))),
        }
    }

    fn push(&mut self, block: u64, len: u64, value: u8) {
        for block in block..(block + len).min(BLOCKS) {
            self.0[usize::try_from(block).unwrap()].push(value);
        }
    }
}

fn run(overlay: &Overlay, op: &Op) -> Result<(), OverlayError> {
    match *op {
        Op::Write { block, len, value } => {
            let blocks = len.min(BLOCKS - block);
            let bytes = vec![value; usize::try_from(blocks * BLOCK_BYTES).unwrap()];
            overlay.write(block * BLOCK_BYTES, &bytes)
        }
        Op::Zero { block, len } => overlay.zero(block..(block + len).min(BLOCKS)),
        Op::Flush => overlay.flush(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Cuts the power in every sync of a workload; whatever subset of unsynced sectors survives, each block holds its
    /// last flushed value or a later one, and the overlay opens.
    #[test]
    fn a_power_cut_in_any_sync_keeps_what_was_flushed(
        ops in prop::collection::vec(op(), 1..30),
        choices in prop::collection::vec(any::<u32>(), 64),
    ) {
        let dry = SimulatedVolume::default();
        let overlay = create(&dry).unwrap();
        for op in &ops {
            run(&overlay, op).unwrap();
        }
        for cut in 4..=dry.syncs() + 1 {
            let volume = SimulatedVolume::new(PowerCut::AtSync(cut));
            let overlay = create(&volume).unwrap();
            let mut allowed = Allowed::new();
            for op in &ops {
                let result = run(&overlay, op);
                if result.is_ok() || !matches!(op, Op::Flush) {
                    allowed.apply(op);
                }
                if result.is_err() {
                    break;
                }
            }
            volume.cut_power();
            let mut next = choices.iter().cycle().enumerate();
            let mut choose = |n: usize| {
                let (turn, choice) = next.next().unwrap();
                (*choice as usize).wrapping_add(turn) % n
            };
            let rebooted = volume.after_reboot(PowerCut::Never, &mut choose);
            let reopened = Overlay::open(&rebooted, identity(1)).unwrap();
            for block in 0..BLOCKS {
                let allowed = &allowed.0[usize::try_from(block).unwrap()];
                for value in observe_sectors(&reopened, block) {
                    prop_assert!(allowed.contains(&value), "cut {cut} block {block}: {value}, allowed {allowed:?}");
                }
            }
        }
    }
}

#[test]
fn a_flush_in_the_middle_of_a_write_makes_no_promise_without_its_data() {
    let volume = SimulatedVolume::default();
    let overlay = create(&volume).unwrap();
    // As far as a write on another thread may have come.
    overlay.data.write_all_at(&[9; 4096], 3 * BLOCK_BYTES).unwrap();
    overlay.map.set(3..4, BlockState::Data);
    overlay.flush().unwrap();
    let rebooted = volume.after_reboot(PowerCut::Never, &mut |_| 0);
    let reopened = Overlay::open(&rebooted, identity(1)).unwrap();
    assert_eq!(observe_sectors(&reopened, 3), [9]);
}

#[test]
fn a_reopened_overlay_is_what_was_flushed() {
    let volume = SimulatedVolume::default();
    let overlay = create(&volume).unwrap();
    assert!(overlay.is_empty());
    for op in [
        Op::Write { block: 3, len: 2, value: 9 },
        Op::Zero { block: 10, len: 1 },
        Op::Write { block: 20, len: 1, value: 8 },
        Op::Zero { block: 20, len: 1 },
        Op::Flush,
    ] {
        run(&overlay, &op).unwrap();
    }
    let rebooted = volume.after_reboot(PowerCut::Never, &mut |_| 0);
    let reopened = Overlay::open(&rebooted, identity(1)).unwrap();
    let found: Vec<u8> = (0..BLOCKS).map(|block| observe(&reopened, block)).collect();
    let mut expected = [0; 24];
    expected[3..5].fill(9);
    expected[10] = 1;
    expected[20] = 1;
    assert_eq!(found, expected);
    assert!(!reopened.is_empty());
    assert_eq!(reopened.beneath(), ManifestId::of(b"head"));
}

#[test]
fn a_flush_with_nothing_to_do_does_not_sync() {
    let volume = SimulatedVolume::default();
    let overlay = create(&volume).unwrap();
    run(&overlay, &Op::Write { block: 0, len: 1, value: 5 }).unwrap();
    overlay.flush().unwrap();
    let syncs = volume.syncs();
    overlay.flush().unwrap();
    assert_eq!(volume.syncs(), syncs);
    run(&overlay, &Op::Write { block: 0, len: 1, value: 6 }).unwrap();
    overlay.flush().unwrap();
    assert_eq!(volume.syncs(), syncs + 1, "rewriting a block leaves the map alone");
}

#[test]
fn a_failed_sync_fails_the_overlay_for_good() {
    let volume = SimulatedVolume::new(PowerCut::AtSync(4));
    let overlay = create(&volume).unwrap();
    run(&overlay, &Op::Write { block: 0, len: 1, value: 5 }).unwrap();
    assert!(matches!(overlay.flush(), Err(OverlayError::Io { action: "sync", .. })));
    assert!(matches!(overlay.flush(), Err(OverlayError::Failed { .. })));
    assert!(matches!(overlay.write(0, &[0; 4096]), Err(OverlayError::Failed { .. })));
}

#[test]
fn a_full_disk_is_told_apart_and_harms_nothing() {
    let volume = SimulatedVolume::default();
    let overlay = create(&volume).unwrap();
    run(&overlay, &Op::Write { block: 0, len: 1, value: 5 }).unwrap();
    volume.limit_writes(Some(1000));
    assert!(matches!(
        run(&overlay, &Op::Write { block: 1, len: 1, value: 6 }),
        Err(OverlayError::Full { .. })
    ));
    assert_eq!(observe(&overlay, 1), 0);
    volume.limit_writes(None);
    run(&overlay, &Op::Write { block: 1, len: 1, value: 6 }).unwrap();
    overlay.flush().unwrap();
    assert_eq!(observe(&overlay, 0), 5);
    assert_eq!(observe(&overlay, 1), 6);
}

/// What it was to make last may be gone: making room brings nothing back.
#[test]
fn a_sync_without_room_fails_the_overlay_for_good() {
    let volume = SimulatedVolume::default();
    let overlay = create(&volume).unwrap();
    run(&overlay, &Op::Write { block: 0, len: 1, value: 5 }).unwrap();
    volume.be_full_at_sync(volume.syncs() + 1);
    assert!(matches!(overlay.flush(), Err(OverlayError::Io { action: "sync", .. })));
    assert!(matches!(overlay.flush(), Err(OverlayError::Failed { .. })));
}

/// As on a file system that writes elsewhere what is written over.
#[test]
fn a_flush_without_room_for_the_map_goes_on_when_there_is() {
    let volume = SimulatedVolume::default();
    let overlay = create(&volume).unwrap();
    run(&overlay, &Op::Write { block: 0, len: 1, value: 5 }).unwrap();
    volume.limit_writes(Some(0));
    assert!(matches!(overlay.flush(), Err(OverlayError::Full { .. })));
    assert!(matches!(overlay.flush(), Err(OverlayError::Full { .. })));
    volume.limit_writes(None);
    overlay.flush().unwrap();
    let rebooted = volume.after_reboot(PowerCut::Never, &mut |_| 0);
    assert_eq!(observe(&Overlay::open(&rebooted, identity(1)).unwrap(), 0), 5);
}

#[test]
fn another_disks_files_are_refused() {
    let volume = SimulatedVolume::default();
    create(&volume).unwrap();
    Overlay::create(&volume, identity(2), ManifestId::of(b"head"), 78).unwrap();
    let data_2 = volume.read("overlay-system-2.data", 1 << 20).unwrap();

    let mut other = identity(1);
    other.desktop = ManifestId::of(b"another");
    let error = Overlay::open(&volume, other).unwrap_err();
    assert!(matches!(error, OverlayError::Foreign { .. }), "{error}");

    volume.replace("overlay-system-1.data", &data_2).unwrap();
    let error = Overlay::open(&volume, identity(1)).unwrap_err();
    assert!(matches!(error, OverlayError::Damaged { .. }), "{error}");
}

#[test]
fn file_names_are_recognised() {
    assert_eq!(parse_file_name("overlay-home-12.map"), Some(("home", 12)));
    for name in
        ["overlay-home-12", "overlay-home-x.map", "desktop.json", "overlay-.map", "overlay-a-1.map.new"]
    {
        assert_eq!(parse_file_name(name), None, "{name}");
    }
}

/// A process killed between writing the map and syncing it leaves states in the page cache that the next process sees
/// and relies on: its first flush must cover them.
#[test]
fn a_flush_covers_what_an_earlier_process_left_in_the_page_cache() {
    let volume = SimulatedVolume::default();
    let overlay = create(&volume).unwrap();
    run(&overlay, &Op::Write { block: 0, len: 1, value: 5 }).unwrap();
    volume.fail_sync(volume.syncs() + 2);
    assert!(overlay.flush().is_err(), "the map's sync failed");
    drop(overlay);

    let reopened = Overlay::open(&volume, identity(1)).unwrap();
    assert_eq!(observe(&reopened, 0), 5);
    reopened.flush().unwrap();
    let rebooted = volume.after_reboot(PowerCut::Never, &mut |_| 0);
    assert_eq!(observe(&Overlay::open(&rebooted, identity(1)).unwrap(), 0), 5);
}
