//! Whatever a driver writes into its rings, descriptors and buffers, the device does not panic and ends at its reset.
#![no_main]

use std::io::Write;
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use satchel_vmm::virtio::VirtioDevice;
use satchel_vmm::virtio::console::{Console, Peer, Port, Stdio};
use satchel_vmm::virtio::driver::Driver;
use satchel_vmm::virtio::hostile::play;

/// What the guest says to open a port: `PORT_READY`, then `PORT_OPEN`.
fn open(driver: &mut Driver, port: u8) {
    for event in [3, 6] {
        driver.send(3, &[&[port, 0, 0, 0, event, 0, 1, 0]], &[]);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let pair = || UnixStream::pair().expect("a pair of sockets");
    let ((mut typed, input), (shown, output), (mut client, peer)) = (pair(), pair(), pair());
    let stdio = Stdio { input: input.into(), output: output.into() };
    let port = Port { name: "port".to_owned(), peer: Peer::Connected(peer.into()) };
    let mut device = Console::new(Some(stdio), vec![port]).expect("a console");
    let mut driver = Driver::start(&mut device);
    open(&mut driver, 0);
    open(&mut driver, 1);
    let some = &bytes[..bytes.len().min(64)];
    typed.write_all(some).expect("a socket that holds a little");
    client.write_all(some).expect("a socket that holds a little");
    play(&mut driver, 6, bytes);
    device.reset();
    drop(shown);
});
