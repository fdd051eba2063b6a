//! The header before each frame: `virtio_net_hdr_v1`, section 5.1.6. Without offloads it says nothing.

/// Its bytes.
pub(super) const HEADER_BYTES: usize = 12;

/// The header of a frame to the guest: no flags, no segments, and the one buffer it lies in, which a device says also where
/// buffers are not merged (section 5.1.6.4.1).
pub(super) const RECEIVED: [u8; HEADER_BYTES] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Cuts the header off a packet of the guest. `None` where it is too short, or asks for a checksum or for segments, which
/// nobody offered.
pub(super) fn frame_of(packet: &[u8]) -> Option<&[u8]> {
    let (header, frame) = packet.split_first_chunk::<HEADER_BYTES>()?;
    let [flags, segments, ..] = header;
    (*flags == 0 && *segments == 0).then_some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_a_header_and_a_frame() {
        assert_eq!(frame_of(&[0; 11]), None);
        assert_eq!(frame_of(&[0; 12]), Some(&[][..]));
        assert_eq!(frame_of(&[0; 14]), Some(&[0, 0][..]));
    }

    #[test]
    fn a_packet_that_asks_for_offloads_is_no_frame() {
        let mut packet = [0; 80];
        packet[0] = 1;
        assert_eq!(frame_of(&packet), None);
        packet[0] = 0;
        packet[1] = 3;
        assert_eq!(frame_of(&packet), None);
    }
}
