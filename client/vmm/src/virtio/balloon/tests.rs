use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::driver::{Descriptor, Driver, MEMORY_BYTES};
use crate::virtio::hostile::{play, send_broken};

const WRITE: u16 = 2;
const PAGE: usize = 4096;
/// A page that no queue and no buffer of these tests lies in.
const LENT: u64 = 0xc0_0000;

fn numbers(addresses: &[u64]) -> Vec<u8> {
    let number = |address: &u64| u32::try_from(address / PAGE_BYTES).unwrap().to_le_bytes();
    addresses.iter().flat_map(number).collect()
}

fn fill(driver: &Driver, address: u64, pages: usize) {
    driver.memory.write_slice(&vec![7; pages * PAGE], GuestAddress(address)).unwrap();
}

fn page_is(driver: &Driver, address: u64, byte: u8) -> bool {
    driver.read(address, 4096).iter().all(|found| *found == byte)
}

fn wait_until(what: impl Fn() -> bool) {
    let begin = Instant::now();
    while !what() {
        assert!(begin.elapsed() < Duration::from_secs(20), "it does not happen");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn pages_given_away_are_zeros_and_can_be_taken_back() {
    let mut device = Balloon::new().unwrap();
    let mut driver = Driver::start(&mut device);
    fill(&driver, LENT, 4);
    let given = numbers(&[LENT + 2 * PAGE_BYTES, LENT]);
    driver.ask(INFLATE, &[&given[..3], &given[3..]], &[]);
    assert!(page_is(&driver, LENT, 0));
    assert!(page_is(&driver, LENT + PAGE_BYTES, 7));
    assert!(page_is(&driver, LENT + 2 * PAGE_BYTES, 0));
    assert!(page_is(&driver, LENT + 3 * PAGE_BYTES, 7));
    fill(&driver, LENT, 1);
    driver.ask(DEFLATE, &[&given], &[]);
    assert!(page_is(&driver, LENT, 7));
}

#[test]
fn free_pages_that_are_reported_are_zeros() {
    let mut device = Balloon::new().unwrap();
    let mut driver = Driver::start(&mut device);
    fill(&driver, LENT, 4);
    let free = |address, length| Descriptor { address, length, flags: WRITE, next: 0 };
    let chain = [free(LENT, 4096), free(LENT + 2 * PAGE_BYTES, 8192)];
    let head = driver.send_chain(REPORTING, &chain);
    driver.ring(REPORTING);
    assert_eq!(driver.used(REPORTING), (head, 0));
    assert!(page_is(&driver, LENT, 0));
    assert!(page_is(&driver, LENT + PAGE_BYTES, 7));
    assert!(page_is(&driver, LENT + 3 * PAGE_BYTES, 0));
}

#[test]
fn a_report_of_half_pages_gives_nothing_away() {
    let mut device = Balloon::new().unwrap();
    let mut driver = Driver::start(&mut device);
    fill(&driver, LENT, 4);
    for (address, length) in [(LENT + 8, 4096), (LENT, 4095), (LENT, 12 << 20)] {
        let whole = Descriptor { address: LENT, length: 4096, flags: WRITE, next: 0 };
        let head = driver.send_chain(REPORTING, &[whole, Descriptor { address, length, ..whole }]);
        driver.ring(REPORTING);
        assert_eq!(driver.used(REPORTING), (head, 0));
    }
    assert!((0..4).all(|page| page_is(&driver, LENT + page * PAGE_BYTES, 7)));
}

#[test]
fn a_request_with_one_page_outside_memory_gives_nothing_away() {
    let mut device = Balloon::new().unwrap();
    let mut driver = Driver::start(&mut device);
    fill(&driver, LENT, 1);
    for outside in [MEMORY_BYTES, u64::from(u32::MAX) * PAGE_BYTES] {
        driver.ask(INFLATE, &[&numbers(&[LENT, outside])], &[]);
    }
    driver.ask(INFLATE, &[&numbers(&[LENT])[..3]], &[]);
    driver.ask(INFLATE, &[&numbers(&[LENT; 4097])], &[]);
    assert!(page_is(&driver, LENT, 7));
}

#[test]
fn a_broken_chain_is_returned_unused_and_the_queue_goes_on() {
    let mut device = Balloon::new().unwrap();
    let mut driver = Driver::start(&mut device);
    for (queue, flags) in [(INFLATE, 0), (DEFLATE, 0), (REPORTING, WRITE)] {
        let size = QUEUE_SIZES[usize::from(queue)];
        for head in send_broken(&mut driver, queue, size, flags) {
            assert_eq!(driver.used(queue), (head, 0));
        }
        driver.make_available(queue, size);
    }
    driver.ask(INFLATE, &[&numbers(&[LENT])], &[]);
    driver.ask(DEFLATE, &[&numbers(&[LENT])], &[]);
    driver.ask(REPORTING, &[], &[4096]);
}

#[test]
fn a_new_target_is_in_the_configuration_and_interrupts() {
    let mut device = Balloon::new().unwrap();
    let handle = device.handle();
    handle.target(0x0102_0304);
    let driver = Driver::start(&mut device);
    wait_until(|| driver.interrupt.config() == 1);
    handle.target(0x0506_0708);
    wait_until(|| driver.interrupt.config() == 2);
    let mut data = [9; 5];
    device.read_config(1, &mut data);
    assert_eq!(data, [7, 6, 5, 0, 0]);
    let mut data = [9; 4];
    device.read_config(6, &mut data);
    assert_eq!(data, [0; 4]);
    device.read_config(u64::MAX, &mut data);
    assert_eq!(data, [0; 4]);
}

#[test]
fn what_the_guest_does_without_is_written_by_the_guest_in_any_pieces() {
    let mut device = Balloon::new().unwrap();
    let handle = device.handle();
    device.write_config(4, &0x0102_0304_u32.to_le_bytes());
    assert_eq!(handle.actual(), 0x0102_0304);
    device.write_config(2, &[9, 9, 8]);
    device.write_config(7, &[7, 7, 7]);
    device.write_config(u64::MAX, &[5; 8]);
    device.write_config(0, &[6; 4]);
    assert_eq!(handle.actual(), 0x0702_0308);
    let mut target = [9; 4];
    device.read_config(0, &mut target);
    assert_eq!(target, [0; 4]);
    device.reset();
    assert_eq!(handle.actual(), 0);
}

#[test]
fn a_driver_without_reporting_needs_two_queues() {
    let mut device = Balloon::new().unwrap();
    let mut driver = Driver::start_with(&mut device, 0);
    fill(&driver, LENT, 1);
    driver.ask(INFLATE, &[&numbers(&[LENT])], &[]);
    assert!(page_is(&driver, LENT, 0));
}

#[test]
fn after_a_reset_it_begins_again() {
    let mut device = Balloon::new().unwrap();
    for _ in 0..3 {
        let mut driver = Driver::start(&mut device);
        for _ in 0..100 {
            driver.send(INFLATE, &[&numbers(&[LENT])], &[]);
        }
        device.reset();
        let mut driver = Driver::start(&mut device);
        fill(&driver, LENT, 1);
        driver.ask(INFLATE, &[&numbers(&[LENT])], &[]);
        assert!(page_is(&driver, LENT, 0));
        device.reset();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_the_driver_does_the_device_ends_when_it_is_reset(
        bytes in prop::collection::vec(any::<u8>(), 0..1000),
    ) {
        let mut device = Balloon::new().unwrap();
        let mut driver = Driver::start(&mut device);
        play(&mut driver, 3, &bytes);
        device.reset();
        let mut driver = Driver::start(&mut device);
        driver.ask(DEFLATE, &[&numbers(&[LENT])], &[]);
    }
}
