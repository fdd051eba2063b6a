//! The server's own key: what clients bind their state to, whatever becomes of certificates and addresses.

use std::fs;
use std::path::Path;

use chunk_format::SecretKey;

use crate::layout::{LayoutError, io_error, write_durably};

const KEY_BYTES: usize = 32;

/// Writes the key as 64 hex digits, readable by the owner only.
pub(crate) fn write(path: &Path, key: &SecretKey) -> Result<(), LayoutError> {
    let mut text: String = key.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    text.push('\n');
    write_durably(path, text.as_bytes(), 0o600)
}

/// Reads the key back.
pub(crate) fn read(path: &Path) -> Result<SecretKey, LayoutError> {
    let text = fs::read(path).map_err(io_error("read", path))?;
    let digits = text.trim_ascii();
    let mut key = [0; KEY_BYTES];
    let whole = digits.len() == 2 * KEY_BYTES
        && digits.iter().all(u8::is_ascii_hexdigit)
        && key.iter_mut().zip(digits.chunks_exact(2)).all(|(byte, pair)| {
            let value = std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
            *byte = value.unwrap_or_default();
            value.is_some()
        });
    if !whole {
        let reason = "it must hold the 64 hex digits of the server's key".to_owned();
        return Err(LayoutError::Invalid { path: path.to_owned(), reason });
    }
    Ok(SecretKey::from_bytes(&key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_and_anything_else_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("identity.key");
        let key = SecretKey::from_bytes(&[9; 32]);
        write(&path, &key).unwrap();
        assert_eq!(read(&path).unwrap().public(), key.public());
        for bad in ["", "09", &"g".repeat(64), &"+1".repeat(32), &"0".repeat(66)] {
            fs::write(&path, bad).unwrap();
            assert!(read(&path).is_err(), "{bad:?}");
        }
    }
}
