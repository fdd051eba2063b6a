//! Names, namespaces and ids: what becomes a path or a URL.

#![no_main]

use std::path::{Component, Path};

use chunk_format::{MAX_NAME_BYTES, Name, Namespace, PackId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(name) = text.parse::<Name>() {
        assert_eq!(name.as_str(), text);
        assert!(text.len() <= MAX_NAME_BYTES);
        assert_plain(text, 1);
    }
    if let Ok(namespace) = text.parse::<Namespace>() {
        assert_eq!(namespace.to_string(), text);
        assert_plain(text, 2);
    }
    if let Ok(id) = text.parse::<PackId>() {
        assert_eq!(id.to_string(), text);
        assert_plain(text, 1);
    }
});

/// Joined to a directory, the text stays below it.
fn assert_plain(text: &str, segments: usize) {
    let components: Vec<_> = Path::new(text).components().collect();
    assert_eq!(components.len(), segments);
    assert!(components.iter().all(|component| matches!(component, Component::Normal(_))));
    assert!(text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'?' | b'#' | b'\\')));
}
