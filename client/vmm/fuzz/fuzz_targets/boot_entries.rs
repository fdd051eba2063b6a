//! Entries of the Boot Loader Specification, parted by zeros; the first part is GRUB's environment block.

#![no_main]

use libfuzzer_sys::fuzz_target;
use satchel_vmm::boot::entries::{Entry, sort};
use satchel_vmm::boot::grub::env;

fuzz_target!(|data: &[u8]| {
    let mut parts = data.split(|byte| *byte == 0);
    let block = [b"# GRUB Environment Block\n", parts.next().unwrap_or_default()].concat();
    let variables = env::parse(&block);
    let entry = |part: &[u8]| {
        let text = String::from_utf8_lossy(part);
        let (name, text) = text.split_once('\n')?;
        Entry::parse(name, text, &variables)
    };
    let entries: Vec<Entry> = parts.filter_map(entry).take(256).collect();
    let count = entries.len();
    let sorted = sort(entries, variables.get("saved_entry").map(String::as_str));
    assert!(sorted.len() <= count);
    assert!(sorted.iter().skip(1).all(|entry| !entry.is_rescue()));
});
