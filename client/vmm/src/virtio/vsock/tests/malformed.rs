//! Chains and packets no driver makes.

use super::*;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

#[test]
fn a_length_beyond_the_chain_is_not_believed() {
    // CVE-2019-18960: the bytes after the buffer are not the guest's to send.
    let (mut vsock, host) = vsock();
    let mut guest = Guest::start(&mut vsock);
    let mut socket = guest.connect(&host);
    for len in [11, 4096, 65_536, 65_537, u32::MAX] {
        let header = Header { len, ..guest.header(op::RW) };
        assert_eq!(guest.driver.ask(TX, &[&header.to_bytes(), &[1; 10]], &[]).1, 0);
        assert_eq!(guest.driver.ask(TX, &[&header.to_bytes()], &[]).1, 0);
    }
    guest.say_bytes(b"good");
    let mut bytes = [0; 4];
    socket.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"good");
}

#[test]
fn a_packet_of_the_guest_that_is_none_is_returned_and_dropped() {
    let (mut vsock, host) = vsock();
    let mut guest = Guest::start(&mut vsock);
    let long = vec![0; HEADER_BYTES + MOST_BYTES + 1];
    let parts: [&[u8]; 4] = [&[], &[0; 1], &[0; 43], &long];
    for part in parts {
        assert_eq!(guest.driver.ask(TX, &[part], &[]).1, 0);
    }
    let request = guest.header(op::REQUEST).to_bytes();
    guest.driver.ask(TX, &[&request], &[100]);
    works(&mut guest, &host);
}

fn hopeless_chains(driver: &mut Driver, flags: u16) -> Vec<Vec<Descriptor>> {
    let address = driver.buffer(4096);
    let part = Descriptor { address, length: 100, flags, next: 0 };
    vec![
        vec![Descriptor { address: MEMORY_BYTES - 50, ..part }],
        vec![Descriptor { address: u64::MAX - 10, ..part }],
        vec![part, Descriptor { address: 1 << 40, ..part }],
        vec![Descriptor { length: u32::MAX, ..part }],
        vec![Descriptor { flags: INDIRECT, address: 1 << 40, length: 160, ..part }],
        vec![Descriptor { flags: INDIRECT, length: 17, ..part }],
        vec![Descriptor { flags: flags ^ WRITE, ..part }],
    ]
}

/// Makes loops and a chain that leaves the table available, and heads that are no entries; how many come back.
fn make_broken_links(driver: &mut Driver, queue: u16, flags: u16) -> usize {
    let address = driver.buffer(4096);
    let part = Descriptor { address, length: 10, flags: flags | NEXT, next: 201 };
    driver.write_descriptor(queue, 200, part);
    driver.write_descriptor(queue, 201, Descriptor { next: 200, ..part });
    driver.write_descriptor(queue, 202, Descriptor { next: 202, length: 0, ..part });
    driver.write_descriptor(queue, 203, Descriptor { next: 256, length: 100, ..part });
    for head in [200, 202, 203, 256, u16::MAX] {
        driver.make_available(queue, head);
    }
    driver.ring(queue);
    3
}

#[test]
fn a_chain_to_send_that_makes_no_sense_is_returned() {
    let (mut vsock, host) = vsock();
    let mut guest = Guest::start(&mut vsock);
    for chain in hopeless_chains(&mut guest.driver, 0) {
        let head = guest.driver.send_chain(TX, &chain);
        guest.driver.ring(TX);
        assert_eq!(guest.driver.used(TX), (head, 0), "{:?}", chain[0]);
    }
    for _ in 0..make_broken_links(&mut guest.driver, TX, 0) {
        assert_eq!(guest.driver.used(TX).1, 0);
    }
    works(&mut guest, &host);
}

#[test]
fn a_chain_to_receive_in_that_makes_no_sense_is_returned_and_the_packet_takes_the_next() {
    let (mut vsock, host) = vsock();
    let mut guest = Guest::without_buffers(&mut vsock);
    guest.driver.ask(TX, &[&guest.header(op::RW).to_bytes()], &[]);
    for chain in hopeless_chains(&mut guest.driver, WRITE) {
        let head = guest.driver.send_chain(RX, &chain);
        guest.driver.ring(RX);
        assert_eq!(guest.driver.used(RX), (head, 0), "{:?}", chain[0]);
    }
    for short in [0, 1, 43, 44] {
        assert_eq!(guest.driver.ask(RX, &[], &[short]).1, 0);
    }
    assert_eq!(guest.driver.ask(RX, &[&[0; 10]], &[100]).1, 0);
    for _ in 0..make_broken_links(&mut guest.driver, RX, WRITE) {
        assert_eq!(guest.driver.used(RX).1, 0);
    }
    guest.give_buffers(20);
    guest.hear_op(op::RST);
    works(&mut guest, &host);
}

fn any_op() -> impl Strategy<Value = u16> {
    prop_oneof![20 => 0..9_u16, 1 => any::<u16>()]
}

fn any_header() -> impl Strategy<Value = Header> {
    (
        any_op(),
        0..4_u32,
        0..3_u32,
        0..200_u32,
        0..4_u32,
        prop_oneof![0..100_000_u32, any::<u32>()],
        any::<u32>(),
    )
        .prop_map(|(op, src_port, dst_port, len, flags, buf_alloc, fwd_cnt)| Header {
            src_cid: u64::from(CID),
            dst_cid: HOST_CID,
            src_port,
            dst_port: SERVICE + dst_port / 2,
            len,
            kind: STREAM,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        })
}

fn any_descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![0x20_0000..0x30_0000_u64, 0..MEMORY_BYTES + 100, any::<u64>()];
    let length = prop_oneof![0..200_u32, 0..80_000_u32, any::<u32>()];
    (address, length, 0..8_u16, 0..300_u16).prop_map(|(address, length, flags, next)| Descriptor {
        address,
        length,
        flags,
        next,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn no_order_of_packets_stops_the_device(
        headers in prop::collection::vec((any_header(), 0..300_usize), 1..60),
        said in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..500), 0..10),
    ) {
        let (mut vsock, host) = vsock();
        let mut guest = Guest::start(&mut vsock);
        let mut said = said.into_iter();
        for (header, bytes) in headers {
            guest.driver.ask(TX, &[&header.to_bytes(), &vec![1; bytes]], &[]);
            let mut sockets = host.0.lock().unwrap();
            if let (Some(socket), Some(bytes)) = (sockets.last_mut(), said.next()) {
                // The guest may have ended it.
                let _ = socket.write_all(&bytes);
                if bytes.len() % 3 == 0 {
                    sockets.pop();
                }
            }
        }
        vsock.reset();
        works(&mut Guest::start(&mut vsock), &host);
    }

    #[test]
    fn no_table_of_descriptors_stops_the_device(
        tables in prop::array::uniform3(prop::collection::vec(any_descriptor(), 1..60)),
        heads in prop::collection::vec((0..3_u16, 0..300_u16), 0..80),
    ) {
        let (mut vsock, host) = vsock();
        let mut guest = Guest::without_buffers(&mut vsock);
        guest.driver.send(TX, &[&guest.header(op::REQUEST).to_bytes()], &[]);
        guest.driver.send(TX, &[&guest.header(op::CREDIT_REQUEST).to_bytes()], &[]);
        vsock.handle().reset_transport();
        for (queue, table) in (0..).zip(&tables) {
            // The table of events has 16 entries; what is written past them is never read.
            for (at, descriptor) in (0..).zip(table) {
                guest.driver.write_descriptor(queue, at, *descriptor);
            }
        }
        for (queue, head) in &heads {
            guest.driver.make_available(*queue, *head);
            guest.driver.ring(*queue);
        }
        // Its rings may be overwritten now: that it ends is all that can be asked.
        std::thread::sleep(Duration::from_millis(3));
        vsock.reset();
        works(&mut Guest::start(&mut vsock), &host);
    }
}
