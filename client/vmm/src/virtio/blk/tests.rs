use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use vm_memory::Bytes;

use super::*;
use crate::event::Event;
use crate::virtio::driver::{Descriptor, Driver, MEMORY_BYTES};

const DISK_BYTES: u64 = 1 << 20;

struct Rig {
    blk: Blk,
    driver: Driver,
    file: File,
    faults: Arc<Faults>,
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

impl Rig {
    fn new() -> Rig {
        Rig::with(false, 1)
    }

    fn with(read_only: bool, queues: u16) -> Rig {
        Rig::made(read_only, queues, |_| {})
    }

    fn made(read_only: bool, queues: u16, change: impl FnOnce(&mut Disk)) -> Rig {
        let file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..DISK_BYTES / 8).flat_map(u64::to_le_bytes).collect();
        file.write_all_at(&content, 0).unwrap();
        let faults = Arc::new(Faults::new(Event::new().unwrap()));
        let config = BlkConfig {
            file: file.try_clone().unwrap(),
            id: "system".to_owned(),
            read_only,
            served: false,
            queues,
            faults: Arc::clone(&faults),
        };
        let mut blk = Blk::new(config).unwrap();
        change(Arc::get_mut(&mut blk.disk).unwrap());
        let driver = Driver::start(&mut blk);
        Rig { blk, driver, file, faults }
    }

    fn content(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut content = vec![0; bytes];
        self.file.read_exact_at(&mut content, offset).unwrap();
        content
    }

    /// Has one sector read for each of `sectors`, all of which the device finds at once.
    fn read_together(&mut self, sectors: impl IntoIterator<Item = u64>) {
        for sector in sectors {
            let at = self.driver.buffer(1024);
            let memory = &self.driver.memory;
            memory.write_slice(&header(0, sector), vm_memory::GuestAddress(at)).unwrap();
            let part = |address, length, flags| Descriptor { address, length, flags, next: 0 };
            let chain = [part(at, 16, 0), part(at + 16, 512, 2), part(at + 528, 1, 2)];
            self.driver.send_chain(0, &chain);
        }
        self.driver.ring(0);
    }

    /// The status byte of a request.
    fn status(&mut self, readable: &[&[u8]], writable: &[u32]) -> u8 {
        let (answer, written) = self.driver.ask(0, readable, writable);
        assert!(written > 0);
        *answer.last().unwrap()
    }
}

#[test]
fn a_disk_tells_its_size_and_what_it_can() {
    let rig = Rig::with(false, 2);
    let mut capacity = [0; 8];
    rig.blk.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), DISK_BYTES / 512);
    let mut queues = [0; 2];
    rig.blk.read_config(34, &mut queues);
    assert_eq!(queues, [2, 0]);
    let most = Rig::with(false, 16);
    most.blk.read_config(34, &mut queues);
    assert_eq!((queues, most.blk.queue_sizes().len()), ([4, 0], 4));
    let mut past = [9; 8];
    rig.blk.read_config(58, &mut past);
    assert_eq!(past, [0; 8]);
    rig.blk.read_config(u64::MAX, &mut past);
    assert_eq!(past, [0; 8]);
}

#[test]
fn what_is_read_is_what_the_file_holds() {
    let mut rig = Rig::new();
    let (answer, written) = rig.driver.ask(0, &[&header(0, 3)], &[512, 1000, 24, 1]);
    assert_eq!(written, 1537);
    assert_eq!(answer[1536], 0);
    assert_eq!(answer[..1536], rig.content(1536, 1536));
}

#[test]
fn what_is_written_is_what_the_file_holds() {
    let mut rig = Rig::new();
    let data = vec![7; 1024];
    assert_eq!(rig.status(&[&header(1, 2), &data[..100], &data[100..]], &[1]), 0);
    assert_eq!(rig.content(1024, 1024), data);
    assert_eq!(rig.status(&[&header(4, 0)], &[1]), 0, "a flush");
    assert_eq!(rig.blk.metrics().flushes.load(Ordering::Relaxed), 1);
}

#[test]
fn any_layout_of_the_buffers_will_do() {
    let mut rig = Rig::new();
    let request = [header(1, 0), vec![9; 512]].concat();
    assert_eq!(rig.status(&[&request[..3], &request[3..20], &request[20..]], &[1]), 0);
    assert_eq!(rig.content(0, 512), [9; 512]);
    let (answer, _) = rig.driver.ask(0, &[&header(0, 0)[..16]], &[513]);
    assert_eq!((&answer[..512], answer[512]), (&[9; 512][..], 0));
}

#[test]
fn the_name_is_told() {
    let mut rig = Rig::new();
    let (answer, written) = rig.driver.ask(0, &[&header(8, 0)], &[20, 1]);
    assert_eq!((written, &answer[..7], answer[20]), (21, &b"system\0"[..], 0));
    assert_eq!(rig.status(&[&header(8, 0)], &[19, 1]), 1);
}

#[test]
fn ranges_are_forgotten_and_made_zero() {
    let mut rig = Rig::new();
    assert_eq!(rig.status(&[&header(11, 0), &range(8, 8, 0)], &[1]), 0);
    assert_eq!(rig.content(4096, 4096), [0; 4096]);
    assert_eq!(rig.status(&[&header(13, 0), &range(16, 8, 0)], &[1]), 0);
    assert_eq!(rig.status(&[&header(13, 0), &range(32, 8, 1)], &[1]), 0);
    assert_eq!(rig.content(8192, 4096), [0; 4096]);
    assert_eq!(rig.content(16384, 4096), [0; 4096]);
    assert_ne!(rig.content(12288, 4096), [0; 4096]);
    assert_eq!(rig.file.metadata().unwrap().len(), DISK_BYTES);
}

#[test]
fn what_lies_past_the_end_is_refused() {
    let mut rig = Rig::new();
    let last = DISK_BYTES / 512;
    for sector in [last, last + 1, u64::MAX, u64::MAX / 512, (u64::MAX / 512) + 1] {
        assert_eq!(rig.status(&[&header(0, sector)], &[512, 1]), 1, "{sector}");
        assert_eq!(rig.status(&[&header(1, sector), &[0; 512]], &[1]), 1, "{sector}");
        assert_eq!(rig.status(&[&header(11, 0), &range(sector, 1, 0)], &[1]), 1, "{sector}");
        assert_eq!(rig.status(&[&header(13, 0), &range(sector, 1, 0)], &[1]), 1, "{sector}");
    }
    assert_eq!(rig.status(&[&header(0, last - 1)], &[1024, 1]), 1);
    assert_eq!(rig.status(&[&header(0, 0)], &[511, 1]), 1, "no whole sector");
    assert_eq!(rig.status(&[&header(11, 0), &range(0, u32::MAX, 0)], &[1]), 1);
    assert_eq!(rig.status(&[&header(11, 0), &range(0, 1, 1)], &[1]), 1, "a flag discard does not have");
    assert_eq!(rig.status(&[&header(11, 0)], &[1]), 1, "no range");
    assert_eq!(rig.status(&[&header(13, 0), &range(0, 1, 0), &range(8, 1, 0)], &[1]), 1, "two at once");
    assert_eq!(rig.status(&[&header(99, 0)], &[1]), 2, "unsupported");
}

#[test]
fn a_disk_to_be_read_only_is_not_written() {
    let mut rig = Rig::with(true, 1);
    assert_eq!(rig.blk.features() & 1 << VIRTIO_BLK_F_RO, 1 << VIRTIO_BLK_F_RO);
    assert_eq!(rig.status(&[&header(1, 0), &[1; 512]], &[1]), 1);
    assert_eq!(rig.status(&[&header(13, 0), &range(0, 1, 0)], &[1]), 1);
    assert_eq!(rig.content(0, 8), [0; 8]);
}

#[test]
fn a_chain_that_cannot_be_answered_comes_back_unused() {
    let mut rig = Rig::new();
    // No status byte, no header, nothing at all.
    for (readable, writable) in
        [(vec![&header(4, 0)[..]], vec![]), (vec![&[0; 15][..]], vec![1]), (vec![], vec![1])]
    {
        assert_eq!(rig.driver.ask(0, &readable, &writable).1, 0);
    }
    let outside = Descriptor { address: MEMORY_BYTES - 4, length: 16, flags: 0, next: 0 };
    let status = Descriptor { address: 0x20_0000, length: 1, flags: 2, next: 0 };
    for chain in [vec![outside, status], vec![status, Descriptor { address: 0x20_0100, ..outside }]] {
        let head = rig.driver.send_chain(0, &chain);
        rig.driver.ring(0);
        assert_eq!(rig.driver.used(0), (head, 0));
    }
    // And the queue goes on.
    assert_eq!(rig.status(&[&header(4, 0)], &[1]), 0);
}

#[test]
fn a_chain_without_an_end_comes_to_one() {
    let mut rig = Rig::new();
    let at = 0x20_0000;
    for index in 0..256 {
        let next = (index + 1) % 256;
        rig.driver.write_descriptor(0, index, Descriptor { address: at, length: 512, flags: 1, next });
    }
    rig.driver.make_available(0, 5);
    rig.driver.ring(0);
    assert_eq!(rig.driver.used(0), (5, 0));
}

#[test]
fn many_requests_are_done_at_once_and_all_are_answered() {
    let mut rig = Rig::with(false, 1);
    let mut answers = std::collections::HashMap::new();
    for round in 0..20_u64 {
        for at in 0..32 {
            let sector = (round * 32 + at) % (DISK_BYTES / 512);
            let answer = rig.driver.send(0, &[&header(0, sector)], &[512, 1]);
            answers.insert(answer.head, (answer, sector));
        }
        for _ in 0..32 {
            let (head, written) = rig.driver.used(0);
            let (answer, sector) = answers.remove(&head).expect("it was asked for");
            assert_eq!(written, 513);
            assert_eq!(rig.driver.read(answer.address, 512), rig.content(sector * 512, 512));
        }
    }
    assert!(answers.is_empty());
}

#[test]
fn the_driver_is_told_together_of_what_is_answered_without_waiting() {
    let mut rig = Rig::new();
    let mut least = u64::MAX;
    // A thread that is kept from its processor for long enough is taken to wait.
    for _ in 0..100 {
        let before = rig.driver.interrupt.queues();
        rig.read_together(0..32);
        for _ in 0..32 {
            assert_eq!(rig.driver.used(0).1, 513);
        }
        while rig.driver.interrupt.queues() == before {
            std::thread::yield_now();
        }
        least = least.min(rig.driver.interrupt.queues() - before);
    }
    assert!(least <= 2, "{least}");
}

#[test]
fn one_that_waits_unexpectedly_keeps_neither_answers_nor_requests_back() {
    let mut rig = Rig::new();
    rig.file.set_len(4096).unwrap();
    // The third waits until the file is as long as it was.
    rig.read_together([0, 1, 100, 2, 3]);
    for _ in 0..4 {
        assert_eq!(rig.driver.used(0).1, 513);
    }
    let told = rig.driver.interrupt.queues();
    assert!(told > 0, "the driver was told of what it has");
    while rig.faults.list().is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(rig.faults.list().len(), 1);
    rig.file.set_len(DISK_BYTES).unwrap();
    assert!(rig.faults.try_again());
    assert_eq!(rig.driver.used(0).1, 513);
    while rig.driver.interrupt.queues() == told {
        std::thread::yield_now();
    }
}

#[test]
fn a_queue_is_looked_after_whatever_another_does() {
    let mut rig = Rig::with(false, 2);
    rig.file.set_len(4096).unwrap();
    rig.read_together([0, 100, 1]);
    let mut answered = 0;
    while answered < 2 {
        assert_eq!(rig.driver.ask(1, &[&header(0, 0)], &[512, 1]).1, 513);
        answered += usize::from(rig.driver.try_used(0).is_some());
    }
    while rig.faults.list().is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(rig.faults.list().len(), 1);
}

#[test]
fn a_failing_file_is_waited_for_and_the_guest_learns_nothing_of_it() {
    let mut rig = Rig::new();
    // Shorter than it was: a read past its end fails.
    rig.file.set_len(4096).unwrap();
    let answer = rig.driver.send(0, &[&header(0, 100)], &[512, 1]);
    while rig.faults.list().is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(rig.faults.list()[0].action, "read");
    assert_eq!(rig.driver.try_used(0), None);
    // Others go on meanwhile.
    assert_eq!(rig.driver.ask(0, &[&header(0, 0)], &[512, 1]).1, 513);
    rig.file.set_len(DISK_BYTES).unwrap();
    assert!(rig.faults.try_again());
    assert_eq!(rig.driver.used(0), (answer.head, 513));
    assert_eq!(rig.driver.read(answer.address, 513), [0; 513]);
}

#[test]
fn a_flush_that_waited_for_one_that_failed_fails_too() {
    let mut rig = Rig::new();
    let disk = Arc::clone(&rig.blk.disk);
    let under_way = disk.flushing.lock().unwrap();
    rig.driver.send(0, &[&header(4, 0)], &[1]);
    while !rig.driver.is_heard() {
        std::thread::yield_now();
    }
    // It has seen no failure yet, and waits for its turn.
    std::thread::sleep(std::time::Duration::from_millis(50));
    disk.has_failed.store(true, Ordering::SeqCst);
    drop(under_way);
    while rig.faults.list().is_empty() {
        assert_eq!(rig.driver.try_used(0), None);
        std::thread::yield_now();
    }
    assert!(rig.faults.list()[0].is_final);
    rig.blk.reset();
    assert_eq!(rig.driver.try_used(0), None);
}

/// Fails for want of space as long as the file is shorter than it was.
fn flush_if_there_is_room(file: &File) -> io::Result<()> {
    match file.metadata()?.len() < DISK_BYTES {
        true => Err(rustix::io::Errno::NOSPC.into()),
        false => file::flush(file),
    }
}

/// A disk whose flush fails, and which request that is.
fn with_a_flush_that_fails(is_served: bool, flush: fn(&File) -> io::Result<()>) -> (Rig, u16) {
    let mut rig = Rig::made(false, 1, |disk| {
        disk.is_served = is_served;
        disk.flush = flush;
    });
    rig.file.set_len(DISK_BYTES / 2).unwrap();
    let flush = rig.driver.send(0, &[&header(4, 0)], &[1]).head;
    wait_for_a_fault(&rig);
    (rig, flush)
}

fn wait_for_a_fault(rig: &Rig) {
    while rig.faults.list().is_empty() {
        std::thread::yield_now();
    }
}

#[test]
fn a_flush_of_a_served_file_that_finds_no_room_waits_for_some_and_is_made_then() {
    let (mut rig, flush) = with_a_flush_that_fails(true, flush_if_there_is_room);
    // As often as it is tried before there is some.
    for _ in 0..3 {
        wait_for_a_fault(&rig);
        let [fault] = &rig.faults.list()[..] else { panic!("{:?}", rig.faults.list()) };
        assert_eq!((fault.action, fault.no_space, fault.is_final), ("flush", true, false));
        assert_eq!(rig.driver.try_used(0), None, "the guest learns nothing of it");
        assert!(rig.faults.try_again(), "it can be tried again");
    }
    wait_for_a_fault(&rig);
    // What is written meanwhile is kept: nothing is lost yet.
    assert_eq!(rig.driver.ask(0, &[&header(1, 2), &[7; 512]], &[1]), (vec![0], 1));
    assert_eq!(rig.content(1024, 512), [7; 512]);
    rig.file.set_len(DISK_BYTES).unwrap();
    assert!(rig.faults.try_again());
    assert_eq!(rig.driver.used(0), (flush, 1));
    assert_eq!(rig.blk.metrics().flushes.load(Ordering::Relaxed), 1);
    assert_eq!(rig.driver.ask(0, &[&header(4, 0)], &[1]), (vec![0], 1), "and so is the next one");
}

/// The kernel tells of it once: of a file of its own it may have dropped what it could not write, and what else fails may be lost.
#[test]
fn a_flush_that_fails_otherwise_is_not_tried_again_and_nothing_is_written_any_more() {
    let fails = |_: &File| Err(rustix::io::Errno::IO.into());
    for (is_served, flush) in [(false, flush_if_there_is_room as fn(&File) -> _), (true, fails)] {
        let (mut rig, _) = with_a_flush_that_fails(is_served, flush);
        assert!(rig.faults.list()[0].is_final);
        rig.file.set_len(DISK_BYTES).unwrap();
        assert!(!rig.faults.try_again(), "there is room, and it is too late");
        rig.driver.send(0, &[&header(1, 2), &[7; 512]], &[1]);
        while rig.faults.list().len() < 2 {
            std::thread::yield_now();
        }
        assert!(rig.faults.list().iter().all(|fault| fault.is_final), "{:?}", rig.faults.list());
        assert_ne!(rig.content(1024, 512), [7; 512]);
        assert_eq!(rig.driver.try_used(0), None);
    }
}

#[test]
fn reads_that_wait_leave_threads_to_writes_and_flushes() {
    for is_served in [false, true] {
        reads_wait(Rig::made(false, 4, |disk| disk.is_served = is_served));
    }
}

fn reads_wait(mut rig: Rig) {
    rig.file.set_len(4096).unwrap();
    let reads = THREADS as u64 + 4;
    let heads: Vec<u16> =
        (0..reads).map(|read| rig.driver.send(1, &[&header(0, 100 + read)], &[512, 1]).head).collect();
    while !rig.driver.is_heard() || rig.blk.disk.faults.list().is_empty() {
        std::thread::yield_now();
    }
    // On the same queue and on others.
    for queue in [1, 3] {
        assert_eq!(rig.driver.ask(queue, &[&header(1, 0), &[6; 512]], &[1]), (vec![0], 1));
        assert_eq!(rig.driver.ask(queue, &[&header(4, 0)], &[1]), (vec![0], 1));
    }
    rig.file.set_len(DISK_BYTES).unwrap();
    let mut answered = Vec::new();
    while answered.len() < heads.len() {
        rig.faults.try_again();
        while let Some((head, written)) = rig.driver.try_used(1) {
            assert_eq!(written, 513);
            answered.push(head);
        }
        std::thread::yield_now();
    }
    answered.sort_unstable();
    let mut heads = heads;
    heads.sort_unstable();
    assert_eq!(answered, heads);
    assert_eq!(rig.driver.ask(1, &[&header(0, 0)], &[512, 1]).1, 513);
}

#[test]
fn parts_of_blocks_are_written_alike_where_the_file_is_served() {
    let mut rig = Rig::made(false, 1, |disk| disk.is_served = true);
    let mut expected = rig.content(0, 16384);
    for (sector, sectors) in [(0, 8), (1, 1), (7, 2), (15, 17)] {
        let (at, bytes) = (sector * 512, sectors * 512);
        expected[at..at + bytes].fill(6);
        assert_eq!(rig.driver.ask(0, &[&header(1, sector as u64), &vec![6; bytes]], &[1]), (vec![0], 1));
    }
    expected[512..1024].fill(0);
    let zeroes = rig.driver.ask(0, &[&header(13, 0), &range(1, 1, 0)], &[1]);
    assert_eq!(zeroes, (vec![0], 1));
    assert_eq!(rig.content(0, 16384), expected);
}

#[test]
fn threads_end_when_their_crew_does_whatever_the_disk_is_at() {
    let mut rig = Rig::new();
    rig.blk.crew.take().unwrap().end();
}

#[test]
fn what_is_longer_than_a_request_may_be_is_refused_and_told() {
    let mut rig = Rig::new();
    let at = rig.driver.buffer(1 << 20);
    rig.file.set_len(64 << 20).unwrap();
    let first = Descriptor { address: at, length: 16, flags: 1, next: 0 };
    let data = Descriptor { address: at, length: 1 << 20, flags: 3, next: 0 };
    let status = Descriptor { address: 0x20_0000, length: 1, flags: 2, next: 0 };
    let chain = [vec![first], vec![data; 33], vec![status]].concat();
    let head = rig.driver.send_chain(0, &chain);
    rig.driver.ring(0);
    assert_eq!(rig.driver.used(0), (head, 1));
    assert_eq!(rig.driver.read(0x20_0000, 1), [1]);
    // And a driver that keeps to what the disk says never sends as much.
    let mut most = [0; 8];
    rig.blk.read_config(8, &mut most);
    assert_eq!(most, [0, 0, 2, 0, 254, 0, 0, 0]);
}

#[test]
fn a_driver_that_knows_no_flush_has_its_writes_last() {
    let mut rig = Rig::new();
    rig.blk.reset();
    let features = rig.blk.features() & !(1 << VIRTIO_BLK_F_FLUSH);
    rig.driver = Driver::start_with(&mut rig.blk, features);
    assert_eq!(rig.status(&[&header(1, 2), &[7; 512]], &[1]), 0);
    assert_eq!(rig.driver.ask(0, &[&header(0, 2)], &[512, 1]).1, 513);
    assert_eq!(rig.blk.metrics().flushes.load(Ordering::Relaxed), 1, "for the write, not for the read");
}

#[test]
fn a_reset_in_flight_leaves_memory_alone_and_the_disk_starts_again() {
    let mut rig = Rig::with(false, 4);
    for _ in 0..10 {
        for queue in 0..4 {
            for sector in 0..20 {
                rig.driver.send(queue, &[&header(0, sector)], &[4096, 1]);
            }
        }
        rig.blk.reset();
        let before: Vec<_> = (0..4).map(|queue| rig.driver.try_used(queue)).collect();
        drop(before);
        rig.driver = Driver::start(&mut rig.blk);
        assert_eq!(rig.driver.ask(3, &[&header(0, 0)], &[512, 1]).1, 513);
    }
}

#[test]
fn a_reset_lets_go_of_what_waits_for_a_file() {
    let mut rig = Rig::new();
    rig.file.set_len(0).unwrap();
    rig.driver.send(0, &[&header(0, 0)], &[512, 1]);
    while rig.faults.list().is_empty() {
        std::thread::yield_now();
    }
    rig.faults.end();
    rig.blk.reset();
    assert_eq!(rig.driver.try_used(0), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_descriptors_break_it(
        table in prop::collection::vec((0..0x2000_0000_u64, 0..10_000_u32, 0..8_u16, 0..300_u16), 1..40),
        heads in prop::collection::vec(0..300_u16, 1..40),
        kinds in prop::collection::vec((0..16_u32, 0..3000_u64), 8),
    ) {
        let mut rig = Rig::new();
        for (at, (kind, sector)) in (0..).zip(&kinds) {
            let at = 0x20_0000 + at * 16;
            rig.driver.memory.write_slice(&header(*kind, *sector), vm_memory::GuestAddress(at)).unwrap();
        }
        for (at, (address, length, flags, next)) in (0..).zip(&table) {
            // Half of them name the headers.
            let (address, length) =
                if address % 2 == 0 { (0x20_0000 + address % 8 * 16, 16) } else { (*address, *length) };
            rig.driver.write_descriptor(0, at, Descriptor { address, length, flags: *flags, next: *next });
        }
        for head in &heads {
            rig.driver.make_available(0, *head);
        }
        rig.driver.ring(0);
        rig.blk.reset();
        rig.driver = Driver::start(&mut rig.blk);
        prop_assert_eq!(rig.driver.ask(0, &[&header(0, 0)], &[512, 1]).1, 513);
    }
}
