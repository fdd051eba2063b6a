//! The header of each packet: `virtio_vsock_hdr`, section 5.10.6.

/// Its bytes.
pub(super) const HEADER_BYTES: usize = 44;
/// `VIRTIO_VSOCK_TYPE_STREAM`: the only type the device knows.
pub(super) const STREAM: u16 = 1;
/// The context identifier of the host.
pub(super) const HOST_CID: u64 = 2;
/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: the sender will receive no more.
pub(super) const NO_MORE_RECEIVED: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender will send no more.
pub(super) const NO_MORE_SENT: u32 = 2;

/// What a packet is for.
pub(super) mod op {
    /// Asks for a connection.
    pub(crate) const REQUEST: u16 = 1;
    /// Accepts it.
    pub(crate) const RESPONSE: u16 = 2;
    /// Refuses or ends it.
    pub(crate) const RST: u16 = 3;
    /// Says what will not come any more.
    pub(crate) const SHUTDOWN: u16 = 4;
    /// Carries bytes.
    pub(crate) const RW: u16 = 5;
    /// Says how much room there is.
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    /// Asks for that.
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// The header of one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes that follow.
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// The bytes the sender has room for, in all.
    pub(super) buf_alloc: u32,
    /// The bytes the sender has passed on, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Header {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let double = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Header {
            src_cid: double(0),
            dst_cid: double(8),
            src_port: word(16),
            dst_port: word(20),
            len: word(24),
            kind: half(28),
            op: half(30),
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        }
    }

    /// The header as it stands in memory.
    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_is_what_was_read(bytes in prop::collection::vec(any::<u8>(), HEADER_BYTES)) {
            let bytes: [u8; HEADER_BYTES] = bytes.try_into().unwrap();
            prop_assert_eq!(Header::parse(&bytes).to_bytes(), bytes);
        }
    }
}
