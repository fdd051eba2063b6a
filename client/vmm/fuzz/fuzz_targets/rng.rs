//! Whatever a driver writes into its rings, descriptors and buffers, the device does not panic and ends at its reset.
#![no_main]

use libfuzzer_sys::fuzz_target;
use satchel_vmm::virtio::VirtioDevice;
use satchel_vmm::virtio::driver::Driver;
use satchel_vmm::virtio::hostile::play;
use satchel_vmm::virtio::rng::Rng;

fuzz_target!(|bytes: &[u8]| {
    let mut device = Rng::new();
    let mut driver = Driver::start(&mut device);
    play(&mut driver, 1, bytes);
    device.reset();
});
