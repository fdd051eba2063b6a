//! Processors: how they are woken, and how they are held.

use std::io::Read;
use std::time::Duration;

use kvm_ioctls::Cap;
use satchel_vmm::machine::layout;

use crate::code::{self, AWAKE, AWAKE_IDS, Command, DONE, WAKE_PAGE};
use crate::guest::{APIC_COMMAND_HIGH, APIC_COMMAND_LOW, Guest, wait_until};
use crate::skip::{kvm, processor_helps, say};

const INIT: u32 = 0x4500;
const START_UP: u32 = 0x4600;

#[test]
fn the_first_processor_wakes_the_others_and_each_has_its_number() {
    const PROCESSORS: u8 = 4;
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::start(&kvm, PROCESSORS, Vec::new());
    guest.put(WAKE_PAGE, code::wake_page());
    for number in 1..PROCESSORS {
        assert_eq!(guest.load(AWAKE) & 0xffff, u32::from(number) - 1, "nobody wakes by himself");
        guest.store(APIC_COMMAND_HIGH, u32::from(number) << 24);
        guest.store(APIC_COMMAND_LOW, INIT);
        let page = u32::try_from(WAKE_PAGE >> 12).unwrap();
        guest.store(APIC_COMMAND_LOW, START_UP | page);
        wait_until(|| guest.load(AWAKE) & 0xffff == u32::from(number));
    }
    assert_eq!(guest.get(AWAKE_IDS, PROCESSORS.into()), [0, 1, 2, 3]);
    // They are halted now, or never were woken: either way they are held and let go.
    guest.machine.pause();
    guest.machine.resume();
    assert_eq!(guest.load(AWAKE) & 0xffff, u32::from(PROCESSORS) - 1);
}

#[test]
fn a_processor_sees_itself_as_one_of_the_cores_of_one_package() {
    const EXTENDED_TOPOLOGY: u32 = 0xb;
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::start(&kvm, 3, Vec::new());
    let [highest, ..] = guest.identify(0, 0);
    if highest < EXTENDED_TOPOLOGY {
        say("this machine's processor has no leaf of extended topology");
        return;
    }
    assert_eq!(guest.identify(EXTENDED_TOPOLOGY, 0), [0, 1, 0x100, 0], "threads of a core");
    assert_eq!(guest.identify(EXTENDED_TOPOLOGY, 1), [2, 3, 0x201, 0], "cores of a package");
    let [_, _, no_level, id] = guest.identify(EXTENDED_TOPOLOGY, 2);
    assert_eq!((no_level & 0xff00, id), (0, 0), "nothing is above");
    let [_, processors, ..] = guest.identify(1, 0);
    assert_eq!(processors >> 16, 3, "as the older leaf has it");
}

#[test]
fn a_processor_has_the_deadline_timer_where_kvm_has_it() {
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::start(&kvm, 1, Vec::new());
    let [_, _, features, _] = guest.identify(1, 0);
    assert_eq!(features >> 24 & 1 == 1, kvm.check_extension(Cap::TscDeadlineTimer));
}

/// Reads what there is of a count, and checks that nothing is missing.
fn drain(guest: &mut Guest, next: &mut u8) -> usize {
    let mut bytes = [0; 4096];
    let mut total = 0;
    while let Ok(length) = guest.line.read(&mut bytes) {
        for byte in &bytes[..length] {
            assert_eq!(byte, next, "a count goes on where it was");
            *next = next.wrapping_add(1);
        }
        total += length;
    }
    total
}

#[test]
fn a_count_stands_still_while_the_machine_is_paused_and_goes_on_after() {
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::start(&kvm, 2, Vec::new());
    guest.order(Command::Count, 0, 0);
    let mut next = 0_u8;
    for _ in 0..5 {
        let mut one = [0];
        guest.hear(&mut one);
        if one[0] == next.wrapping_add(1) && !processor_helps() {
            say("this machine's KVM, which no processor helps, lost what was being said at a pause");
            return;
        }
        assert_eq!(one[0], next, "it counts");
        next = next.wrapping_add(1);
        guest.machine.pause();
        assert!(guest.machine.is_paused());
        guest.line.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        drain(&mut guest, &mut next);
        assert_eq!(drain(&mut guest, &mut next), 0, "nothing is said any more");
        guest.machine.resume();
    }
    std::io::Write::write_all(&mut guest.line, &[0]).unwrap();
    // Counts are bytes of any value: an acknowledgement is the one that is out of turn.
    loop {
        let mut one = [0];
        guest.hear(&mut one);
        if one[0] != next {
            assert_eq!(one[0], DONE);
            break;
        }
        next = next.wrapping_add(1);
    }
}

#[test]
fn a_halted_processor_is_held_and_takes_the_interrupt_that_came_meanwhile() {
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::start(&kvm, 1, Vec::new());
    guest.route(layout::EVENT_GSI);
    guest.settle();
    let button = code::COUNTERS + u64::from(code::FIRST_VECTOR + layout::EVENT_GSI) * 4;
    guest.order(Command::Halt, button, 0);
    guest.machine.pause();
    guest.machine.press_power_button();
    guest.machine.resume();
    let mut done = [0];
    guest.hear(&mut done);
    assert_eq!(done, [DONE]);
    assert_eq!(guest.interrupts(layout::EVENT_GSI), 1);
}

#[test]
fn a_machine_whose_processor_sleeps_for_ever_can_be_dropped() {
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::start(&kvm, 2, Vec::new());
    guest.order(Command::Stop, 0, 0);
    guest.machine.pause();
    drop(guest);
}
