//! Reads little-endian fields off the front of a byte slice, never past its end.

use crate::error::FormatError;

pub(crate) struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let Some((taken, rest)) = self.bytes.split_at_checked(len) else {
            return Err(FormatError::Truncated {
                what: self.what,
                len_bytes: self.bytes.len() as u64,
                needed_bytes: len as u64,
            });
        };
        self.bytes = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn magic(&mut self, expected: &[u8; 8]) -> Result<(), FormatError> {
        let found: [u8; 8] = self.array()?;
        if found == *expected {
            return Ok(());
        }
        Err(FormatError::BadMagic { what: self.what, found: found.to_vec() })
    }

    pub(crate) fn version(&mut self, supported: u16) -> Result<(), FormatError> {
        let found = self.u16()?;
        if found == supported {
            return Ok(());
        }
        let (found, supported) = (u64::from(found), u64::from(supported));
        Err(FormatError::UnsupportedVersion { what: self.what, found, supported })
    }

    /// Checks that nothing is left.
    pub(crate) fn end(self) -> Result<(), FormatError> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        Err(FormatError::field(self.what, "length", format!("{} bytes too long", self.bytes.len()), "exact"))
    }
}
