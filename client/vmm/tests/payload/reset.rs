//! A driver that goes away while its device works, and another that comes.

use std::io::Write;
use std::os::unix::fs::FileExt;

use crate::devices::{BLOCK, NET, disk, framed, net, request};
use crate::driver::{Driver, USED_BUFFER, register};
use crate::guest::Guest;
use crate::skip::kvm;

#[test]
fn a_disk_that_is_reset_at_work_leaves_memory_alone_and_begins_anew() {
    const PART: u32 = 1 << 20;
    let Some(kvm) = kvm() else { return };
    let (disk, file) = disk(u64::from(PART), 1);
    let guest = &mut Guest::start(&kvm, 1, vec![Box::new(disk)]);
    for round in 1..=3_u8 {
        file.write_all_at(&vec![round; PART as usize], 0).unwrap();
        let mut driver = Driver::start(guest, 0, BLOCK, 0);
        let reads: Vec<_> = (0..4).map(|_| driver.offer(guest, 0, &[&request(0, 0)], &[PART, 1])).collect();
        driver.ring(guest, 0);
        driver.store(guest, register::STATUS, 0);
        assert_eq!(driver.load(guest, register::STATUS), 0);
        assert_eq!(driver.load(guest, register::INTERRUPT_STATUS), 0);
        // Whatever was done, it was done when the reset was: nothing is written any more.
        for read in &reads {
            guest.put(read.address, &[0xee]);
            guest.put(read.address + u64::from(PART), &[0xee]);
        }
        let mut driver = Driver::start(guest, 0, BLOCK, 0);
        let answer = driver.ask(guest, 0, &[&request(0, 8)], &[16, 496, 1]);
        assert_eq!((answer[0], answer[511], answer[512]), (round, round, 0));
        for read in &reads {
            assert_eq!(guest.get(read.address, 1), [0xee]);
            assert_eq!(guest.get(read.address + u64::from(PART), 1), [0xee]);
        }
    }
}

#[test]
fn a_frame_goes_to_the_driver_there_is_and_not_to_the_one_there_was() {
    let Some(kvm) = kvm() else { return };
    let (net, mut peer) = net();
    let guest = &mut Guest::start(&kvm, 1, vec![Box::new(net)]);
    let mut first = Driver::start(guest, 0, NET, 0);
    let old = first.offer(guest, 0, &[], &[1526]);
    first.ring(guest, 0);
    let mut second = Driver::start(guest, 0, NET, 0);
    peer.write_all(&framed(&[5; 60])).unwrap();
    let interrupts = guest.interrupts(second.gsi);
    let new = second.offer(guest, 0, &[], &[1526]);
    second.ring(guest, 0);
    second.handle_interrupt(guest, interrupts, USED_BUFFER);
    assert_eq!(second.used(guest, 0), Some((new.head, 72)));
    assert_eq!(guest.get(new.address + 12, 60), [5; 60]);
    assert_eq!(first.used(guest, 0), None);
    assert_eq!(guest.get(old.address, 72), [0; 72]);
}
