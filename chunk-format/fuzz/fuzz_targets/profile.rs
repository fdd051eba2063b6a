//! A boot profile.

#![no_main]

use chunk_format::Profile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(profile) = Profile::decode(data) {
        assert_eq!(profile.encode().unwrap(), data, "a profile has one encoding");
    }
});
