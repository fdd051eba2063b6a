//! How machines end, and the lines between them and whoever runs them.

use satchel_vmm::machine::{End, layout};

use crate::code::Command;
use crate::guest::{Guest, wait_until};
use crate::skip::{kvm, say};

fn ends(command: Command, port: u16, value: u32, end: End) {
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::start(&kvm, 1, Vec::new());
    assert_eq!(guest.machine.ending().end(), None);
    guest.order(command, u64::from(port), value);
    assert_eq!(guest.end(), end);
}

#[test]
fn the_sleep_register_switches_the_machine_off() {
    ends(Command::Out, layout::SLEEP_CONTROL_PORT, 0x34, End::PoweredOff);
}

#[test]
fn the_reset_register_resets_it() {
    ends(Command::Out, layout::RESET_PORT, layout::RESET_VALUE.into(), End::Reset);
}

#[test]
fn the_keyboard_controller_resets_it() {
    ends(Command::Out, 0x64, 0xfe, End::Reset);
}

#[test]
fn a_processor_without_handlers_that_takes_a_breakpoint_ends_it() {
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::start(&kvm, 1, Vec::new());
    guest.order(Command::Fault, 0, 0);
    match guest.end() {
        // A KVM without the processor's help gives up before it has imitated so much.
        End::Failed { reason } if reason.ends_with("InternalError") => {
            say(&format!("this machine's KVM imitates no triple fault: {reason}"));
        }
        end => assert_eq!(end, End::TripleFault { processor: 0 }),
    }
}

#[test]
fn what_ended_can_be_dropped_and_its_first_end_counts() {
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::start(&kvm, 2, Vec::new());
    guest.out(layout::SLEEP_CONTROL_PORT, 0x34);
    guest.out(layout::RESET_PORT, layout::RESET_VALUE);
    assert_eq!(guest.end(), End::PoweredOff);
    drop(guest);
}

#[test]
fn a_panic_is_told_and_the_guest_goes_on() {
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::start(&kvm, 1, Vec::new());
    assert!(!guest.machine.ending().has_panicked());
    guest.out(layout::PANIC_PORT, 1);
    wait_until(|| guest.machine.ending().has_panicked());
    assert_eq!(guest.load(0), 0);
    assert_eq!(guest.machine.ending().end(), None);
}

#[test]
fn the_power_button_interrupts_a_halted_processor() {
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::start(&kvm, 1, Vec::new());
    guest.route(layout::EVENT_GSI);
    assert_eq!(guest.interrupts(layout::EVENT_GSI), 0);
    guest.machine.press_power_button();
    guest.await_interrupt(layout::EVENT_GSI, 0);
    assert_eq!(guest.interrupts(layout::EVENT_GSI), 1, "one press, one interrupt");
}
