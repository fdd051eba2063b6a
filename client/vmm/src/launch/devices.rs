//! The machine's virtio devices, and the handles that whoever supervises it keeps of them.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use super::{DiskConfig, LaunchError, NetBackend, NetConfig, VsockConfig, cannot};
use crate::faults::Faults;
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::Balloon;
use crate::virtio::blk::{Blk, BlkConfig, BlkMetrics};
use crate::virtio::console::{Console, Port};
use crate::virtio::net::{Exchange, Frames, LinkState, Net, Stream, Tap};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Connector, Handle, Vsock};

/// What is kept of the devices while the machine runs.
pub(super) struct Watched {
    /// Disks, by name.
    pub(super) disks: Vec<(String, Arc<BlkMetrics>)>,
    /// Whether the network's link is up.
    pub(super) link: Option<LinkState>,
    /// Where connections to the guest are asked for, and how they get there.
    pub(super) vsock: Option<(UnixListener, Handle)>,
}

/// The devices.
pub(super) struct Devices {
    /// In the order in which the guest finds them: disks first, so that the first is `vda`.
    pub(super) list: Vec<Box<dyn VirtioDevice>>,
    pub(super) watched: Watched,
}

/// The guest is to be reached, and reaches nobody by itself.
struct Nobody;

impl Connector for Nobody {
    fn connect(&mut self, _: u32) -> std::io::Result<OwnedFd> {
        Err(std::io::ErrorKind::ConnectionRefused.into())
    }
}

fn passt(socket: OwnedFd) -> std::io::Result<Box<dyn Frames>> {
    Ok(match rustix::net::sockopt::socket_acceptconn(&socket)? {
        true => Box::new(Exchange::new(socket.into())?),
        false => Box::new(Stream::new(socket)),
    })
}

impl Devices {
    pub(super) fn new(
        disks: Vec<DiskConfig>,
        net: Option<NetConfig>,
        ports: Vec<Port>,
        vsock: Option<VsockConfig>,
        queues: u16,
        faults: &Arc<Faults>,
    ) -> Result<Devices, LaunchError> {
        let mut list: Vec<Box<dyn VirtioDevice>> = Vec::new();
        let mut watched = Watched { disks: Vec::new(), link: None, vsock: None };
        for disk in disks {
            let config = BlkConfig {
                file: disk.file,
                id: disk.id.clone(),
                read_only: disk.read_only,
                served: disk.served,
                queues,
                faults: Arc::clone(faults),
            };
            let blk = Blk::new(config).map_err(cannot("learn the size of a disk"))?;
            watched.disks.push((disk.id, blk.metrics()));
            list.push(Box::new(blk));
        }
        if let Some(net) = net {
            let frames: Box<dyn Frames> = match net.backend {
                NetBackend::Passt(socket) => passt(socket).map_err(cannot("use the network's socket"))?,
                NetBackend::Tap(tap) => Box::new(Tap::new(tap).map_err(cannot("use the TAP device"))?),
            };
            let device = Net::new(net.mac, None, frames);
            watched.link = Some(device.link());
            list.push(Box::new(device));
        }
        list.push(Box::new(Rng::new()));
        if !ports.is_empty() {
            // The console proper is the serial line; this one is there for its ports.
            list.push(Box::new(Console::new(None, ports)?));
        }
        if let Some(vsock) = vsock {
            vsock.listener.set_nonblocking(true).map_err(cannot("set up the socket for vsock"))?;
            let device = Vsock::new(vsock.cid, Box::new(Nobody)).map_err(cannot("make an event"))?;
            watched.vsock = Some((vsock.listener, device.handle()));
            list.push(Box::new(device));
        }
        Ok(Devices { list, watched })
    }

    pub(super) fn add_balloon(&mut self) -> Result<(), LaunchError> {
        self.list.push(Box::new(Balloon::new().map_err(cannot("make an event"))?));
        Ok(())
    }
}
