//! A socket device between a guest and programs of the host that all say whatever they like.

#![no_main]

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use satchel_vmm::virtio::VirtioDevice;
use satchel_vmm::virtio::driver::{Descriptor, Driver};
use satchel_vmm::virtio::hostile::settle;
use satchel_vmm::virtio::vsock::{Connector, Handle, Vsock};

#[derive(Clone, Default)]
struct Host(Arc<Mutex<Vec<UnixStream>>>);

impl Connector for Host {
    fn connect(&mut self, port: u32) -> io::Result<OwnedFd> {
        if port % 4 == 3 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        self.0.lock().unwrap().push(theirs);
        Ok(ours.into())
    }
}

/// A packet of the guest, which is 3: its ports are few, so that many packets meet a connection.
fn packet(bytes: &[u8; 16]) -> [u8; 44] {
    let mut packet = [0; 44];
    packet[0] = 3;
    packet[8] = 2;
    packet[16] = bytes[0] % 4;
    packet[20] = bytes[1] % 4;
    packet[24..27].copy_from_slice(&bytes[2..5]);
    packet[28] = 1 + bytes[5] / 250;
    packet[30] = bytes[6] % 10;
    packet[32] = bytes[7] % 4;
    packet[36..40].copy_from_slice(&bytes[8..12]);
    packet[40..44].copy_from_slice(&bytes[12..16]);
    packet
}

/// One step: its kind, and as many bytes as that takes.
fn step(data: &mut &[u8], driver: &mut Driver, host: &Host, handle: &Handle) -> Option<()> {
    let [kind, rest @ ..] = *data else { return None };
    let (entry, rest) = rest.split_first_chunk::<16>()?;
    *data = rest;
    let queue = u16::from(kind / 16 % 3);
    match kind % 16 {
        0..=2 => {
            let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, flags, next, at, _] = *entry;
            let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
            let length = u32::from_le_bytes([l0, l1, l2, l3]);
            let descriptor = Descriptor { address, length, flags: u16::from(flags), next: u16::from(next) };
            driver.write_descriptor(queue, u16::from(at), descriptor);
        }
        3 | 4 => {
            driver.make_available(queue, u16::from_le_bytes([entry[0], entry[1]]) % 300);
            driver.ring(queue);
        }
        5 | 6 => {
            driver.send(0, &[], &[44 + u32::from(entry[0])]);
        }
        7 => {
            let (ours, theirs) = UnixStream::pair().ok()?;
            theirs.set_nonblocking(true).ok()?;
            host.0.lock().unwrap().push(theirs);
            let _ = handle.connect(u32::from(entry[0] % 4), ours.into());
        }
        8 => {
            driver.send(2, &[], &[u32::from(entry[0])]);
            handle.reset_transport();
        }
        9 => {
            host.0.lock().unwrap().pop();
        }
        10 => {
            if let Some(socket) = host.0.lock().unwrap().last_mut() {
                let _ = socket.write(&[0; 300][..usize::from(entry[0])]);
            }
        }
        _ => {
            driver.send(1, &[&packet(entry), &[1; 300][..usize::from(entry[2])]], &[]);
        }
    }
    Some(())
}

fuzz_target!(|data: &[u8]| {
    let host = Host::default();
    let mut vsock = Vsock::new(3, Box::new(host.clone())).unwrap();
    let handle = vsock.handle();
    let mut driver = Driver::start(&mut vsock);
    let mut data = data;
    while step(&mut data, &mut driver, &host, &handle).is_some() {}
    // What it says is not looked at: it may have been made to write over the rings.
    settle(&driver);
    vsock.reset();
});
