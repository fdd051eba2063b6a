//! A stored signature, its key included.

#![no_main]

use chunk_format::{PublicKey, Signature};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(signature) = Signature::decode(data) {
        let stored = signature.encode();
        assert_eq!(stored.strip_suffix(b"\n"), Some(data.strip_suffix(b"\n").unwrap_or(data)));
        assert_eq!(Signature::decode(&stored).unwrap(), signature);
        assert!(signature.verify("input", data).is_err(), "nobody has signed this");
    }
    if let Ok(key) = String::from_utf8_lossy(data).parse::<PublicKey>() {
        assert_eq!(key.to_string().parse::<PublicKey>().unwrap(), key);
    }
});
