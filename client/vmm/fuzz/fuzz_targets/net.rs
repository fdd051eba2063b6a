//! A network device between a guest and a passt that both say whatever they like.

#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use satchel_vmm::virtio::VirtioDevice;
use satchel_vmm::virtio::driver::{Descriptor, Driver};
use satchel_vmm::virtio::hostile::settle;
use satchel_vmm::virtio::net::{Net, Stream};

/// One step: its kind, and as many bytes as that takes.
fn step(data: &mut &[u8], driver: &mut Driver, peer: &mut UnixStream) -> Option<()> {
    let [kind, rest @ ..] = *data else { return None };
    *data = rest;
    let queue = u16::from(kind & 1);
    match kind >> 1 & 7 {
        0..=2 => {
            let (entry, rest) = data.split_first_chunk::<16>()?;
            *data = rest;
            let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, flags, next, at, _] = *entry;
            let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
            let length = u32::from_le_bytes([l0, l1, l2, l3]);
            let descriptor = Descriptor { address, length, flags: u16::from(flags), next: u16::from(next) };
            driver.write_descriptor(queue, u16::from(at), descriptor);
        }
        3 | 4 => {
            let (head, rest) = data.split_first_chunk::<2>()?;
            *data = rest;
            driver.make_available(queue, u16::from_le_bytes(*head) % 300);
            driver.ring(queue);
        }
        5 => {
            driver.send(1, &[&[0; 12], &[1; 60]], &[]);
        }
        6 => {
            driver.send(0, &[], &[1526]);
        }
        _ => {
            let (length, rest) = data.split_first()?;
            let (said, rest) = rest.split_at(rest.len().min(usize::from(*length)));
            *data = rest;
            if kind & 1 == 1 {
                peer.write_all(&u32::from(*length).to_be_bytes()).ok()?;
            }
            peer.write_all(said).ok()?;
        }
    }
    Some(())
}

fuzz_target!(|data: &[u8]| {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    peer.set_nonblocking(true).unwrap();
    let mut net = Net::new([2, 0, 0, 0, 0, 1], Some(1500), Box::new(Stream::new(ours.into())));
    let mut driver = Driver::start(&mut net);
    let mut data = data;
    while step(&mut data, &mut driver, &mut peer).is_some() {}
    // What it says is not looked at: it may have been made to write over the rings.
    settle(&driver);
    let _ = peer.read(&mut [0; 4096]);
    net.reset();
});
