//! GRUB's configuration, which can read itself and an environment block.

#![no_main]

use libfuzzer_sys::fuzz_target;
use satchel_vmm::boot::grub::{self, Files};

struct Itself<'a>(&'a [u8]);

impl Files for Itself<'_> {
    fn file_bytes(&self, path: &str) -> Option<u64> {
        path.ends_with("env").then_some(self.0.len() as u64)
    }

    fn exists(&self, path: &str) -> bool {
        path.len() % 2 == 0
    }

    fn read(&self, path: &str, _: u64) -> Option<Vec<u8>> {
        if path.ends_with("env") {
            return Some([b"# GRUB Environment Block\n", self.0].concat());
        }
        path.ends_with("cfg").then(|| self.0.to_vec())
    }
}

fuzz_target!(|data: &[u8]| {
    let script = String::from_utf8_lossy(data);
    let _ = grub::choose(&script, "/boot/grub", &Itself(data));
    let _ = grub::variables(&script, "/boot/grub", &Itself(data));
});
