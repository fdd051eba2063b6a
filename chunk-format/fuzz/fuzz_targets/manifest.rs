//! A manifest's JSON.

#![no_main]

use chunk_format::{FormatError, MAX_MANIFEST_BYTES, Manifest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match Manifest::decode(data) {
        Ok(manifest) => {
            let _ = manifest.check_writable();
            match manifest.encode() {
                Ok(bytes) => assert_eq!(Manifest::decode(&bytes).unwrap(), manifest),
                // White space makes what is written longer than what was read.
                Err(FormatError::TooLong { .. }) => assert!(data.len() > MAX_MANIFEST_BYTES / 8),
                Err(other) => panic!("read, but not written: {other}"),
            }
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < 8192 && !message.chars().any(char::is_control), "{message:?}");
        }
    }
});
