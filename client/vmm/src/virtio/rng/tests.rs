use proptest::prelude::*;

use super::{QUEUE_SIZES, Rng};
use crate::virtio::VirtioDevice;
use crate::virtio::driver::Driver;
use crate::virtio::hostile::{play, send_broken};

const WRITE: u16 = 2;

#[test]
fn buffers_are_filled_with_random_bytes() {
    let mut device = Rng::new();
    let mut driver = Driver::start(&mut device);
    let (first, written) = driver.ask(0, &[], &[64, 0, 32]);
    assert_eq!(written, 96);
    let (second, _) = driver.ask(0, &[], &[96]);
    assert_ne!(first, second);
    assert_ne!(first, vec![0; 96]);
    assert!(driver.interrupt.queues() >= 1);
}

#[test]
fn a_chain_gets_64_kib_at_most() {
    let mut device = Rng::new();
    let mut driver = Driver::start(&mut device);
    let (bytes, written) = driver.ask(0, &[], &[40 << 10, 40 << 10]);
    assert_eq!(written, 64 << 10);
    assert_eq!(bytes[64 << 10..], vec![0; 16 << 10]);
}

#[test]
fn a_broken_chain_is_returned_unused_and_the_queue_goes_on() {
    let mut device = Rng::new();
    let mut driver = Driver::start(&mut device);
    for head in send_broken(&mut driver, 0, QUEUE_SIZES[0], WRITE) {
        assert_eq!(driver.used(0), (head, 0));
    }
    let (_, written) = driver.ask(0, &[], &[16]);
    assert_eq!(written, 16);
}

#[test]
fn a_chain_with_a_part_to_read_is_returned_unused() {
    let mut device = Rng::new();
    let mut driver = Driver::start(&mut device);
    let (bytes, written) = driver.ask(0, &[b"seed"], &[16]);
    assert_eq!((bytes, written), (vec![0; 16], 0));
}

#[test]
fn a_head_outside_the_table_is_passed_over() {
    let mut device = Rng::new();
    let mut driver = Driver::start(&mut device);
    driver.make_available(0, QUEUE_SIZES[0]);
    driver.make_available(0, u16::MAX);
    let (_, written) = driver.ask(0, &[], &[16]);
    assert_eq!(written, 16);
}

#[test]
fn after_a_reset_it_begins_again() {
    let mut device = Rng::new();
    for _ in 0..3 {
        let mut driver = Driver::start(&mut device);
        for _ in 0..QUEUE_SIZES[0] {
            driver.send(0, &[], &[4096]);
        }
        device.reset();
        let mut driver = Driver::start(&mut device);
        assert_eq!(driver.ask(0, &[], &[16]).1, 16);
        device.reset();
    }
}

#[test]
fn its_configuration_is_empty() {
    for (offset, length) in [(0, 1), (3, 5), (u64::MAX, 8)] {
        let mut data = vec![7; length];
        Rng::new().read_config(offset, &mut data);
        assert_eq!(data, vec![0; length]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_the_driver_does_the_device_ends_when_it_is_reset(
        bytes in prop::collection::vec(any::<u8>(), 0..1000),
    ) {
        let mut device = Rng::new();
        let mut driver = Driver::start(&mut device);
        play(&mut driver, 1, &bytes);
        device.reset();
        let mut driver = Driver::start(&mut device);
        prop_assert_eq!(driver.ask(0, &[], &[16]).1, 16);
    }
}
