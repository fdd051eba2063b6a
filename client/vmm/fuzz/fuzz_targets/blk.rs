//! A disk whose driver asks for whatever it likes: its file never fails, keeps its length, and is not written when it is
//! there to be read only.

#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use satchel_vmm::event::Event;
use satchel_vmm::faults::Faults;
use satchel_vmm::virtio::VirtioDevice;
use satchel_vmm::virtio::blk::{Blk, BlkConfig};
use satchel_vmm::virtio::driver::{Descriptor, Driver};
use satchel_vmm::virtio::hostile::play;

const DISK_BYTES: u64 = 64 << 10;
/// Requests that are nearly right, before everything goes.
const REQUESTS: usize = 32;

/// One request: its kind and sector, its data or ranges, how it is cut into buffers, and what there is to write.
fn request(data: &mut &[u8], driver: &mut Driver, queues: u16) -> Option<()> {
    let (head, rest) = data.split_first_chunk::<8>()?;
    let [queue, kind, sector, sector_high, cut, length, answer, status] = *head;
    let (body, rest) = rest.split_at(rest.len().min(usize::from(length)));
    *data = rest;
    let mut readable = vec![kind % 16, 0, 0, 0, 0, 0, 0, 0, sector, sector_high / 128, 0, 0, 0, 0, 0, 0];
    if sector_high % 128 == 127 {
        readable[9..].fill(0xff);
    }
    match kind / 16 % 4 {
        // Ranges: sector, sectors and flags, a byte each.
        0 => {
            for range in body.as_chunks::<3>().0 {
                readable.extend([range[0], 0, 0, 0, 0, 0, 0, 0, range[1], 0, 0, 0, range[2], 0, 0, 0]);
            }
        }
        // Whole sectors.
        1 => readable.resize(readable.len() + usize::from(length % 16) * 512, length),
        _ => readable.extend_from_slice(body),
    }
    let (front, back) = readable.split_at(readable.len().min(usize::from(cut)));
    let writable = [u32::from(answer) * 64, u32::from(status % 4)];
    driver.send(u16::from(queue) % queues, &[front, back], &writable);
    Some(())
}

fn file() -> File {
    let name = c"disk";
    let file: File = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).expect("a file").into();
    file.set_len(DISK_BYTES).expect("a length");
    file.write_all_at(&[0xa5; 4096], 0).expect("some content");
    file
}

fuzz_target!(|data: &[u8]| {
    let Some((shape, mut data)) = data.split_first() else { return };
    let (queues, read_only) = (1 + u16::from(shape % 3), shape & 0x80 != 0);
    let file = file();
    let faults = Arc::new(Faults::new(Event::new().expect("an event")));
    let config = BlkConfig {
        file: file.try_clone().expect("a descriptor"),
        id: "disk".to_owned(),
        read_only,
        served: shape & 4 != 0,
        queues,
        faults: Arc::clone(&faults),
    };
    let mut blk = Blk::new(config).expect("a disk");
    let mut driver = Driver::start(&mut blk);
    for _ in 0..REQUESTS.min(usize::from(shape >> 3 & 15) * 4) {
        if request(&mut data, &mut driver, queues).is_none() {
            break;
        }
    }
    // A request to make available whose header and data are the ring of queue 0 itself.
    driver.write_descriptor(0, 255, Descriptor { address: 0x1_0000, length: 4096, flags: 0, next: 0 });
    driver.make_available(0, 255);
    play(&mut driver, queues, data);
    assert_eq!(faults.list(), [], "nothing a guest asks for makes a file fail");
    faults.end();
    blk.reset();
    assert_eq!(file.metadata().expect("a file").len(), DISK_BYTES);
    if read_only {
        let mut content = [0; 8192];
        file.read_exact_at(&mut content, 0).expect("the content");
        assert!(
            content[..4096] == [0xa5; 4096] && content[4096..] == [0; 4096],
            "a disk to read was written"
        );
    }
});
