//! A whole disk, or one file system of it.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use satchel_vmm::boot;
use satchel_vmm::boot::kernel::KernelHeader;

fuzz_target!(|data: &[u8]| {
    match boot::find(Arc::new(data.to_vec())) {
        Ok(plan) => {
            KernelHeader::parse(&plan.kernel).unwrap();
            assert!(plan.command_line.len() <= 2047 && !plan.command_line.chars().any(char::is_control));
            assert!(!plan.origin.to_string().chars().any(char::is_control));
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < 16384 && !message.chars().any(char::is_control), "{message:?}");
        }
    }
});
