//! Whatever a driver writes into its rings, descriptors and buffers, the device does not panic and ends at its reset.
#![no_main]

use libfuzzer_sys::fuzz_target;
use satchel_vmm::virtio::VirtioDevice;
use satchel_vmm::virtio::balloon::Balloon;
use satchel_vmm::virtio::driver::Driver;
use satchel_vmm::virtio::hostile::play;

fuzz_target!(|bytes: &[u8]| {
    let mut device = Balloon::new().expect("a descriptor");
    let mut driver = Driver::start(&mut device);
    play(&mut driver, 3, bytes);
    device.reset();
});
