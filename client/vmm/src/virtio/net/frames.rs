//! Where frames go to and come from.

use std::io;
use std::os::fd::BorrowedFd;

/// Bytes of the shortest thing that is a frame at all: two addresses and a type.
pub const SHORTEST_FRAME: usize = 14;
/// Bytes of the longest frame: the longest IP packet, its Ethernet header and one byte that makes the size even.
pub const LONGEST_FRAME: usize = 65_550;

/// Why there is no link any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkLost {
    /// The other side is gone.
    #[error("the other side of the network closed it")]
    Closed,
    /// The other side does not speak the protocol: what follows cannot be made sense of.
    #[error("the other side of the network announced a frame of {length} bytes")]
    Length {
        /// The length it announced.
        length: u32,
    },
    /// The descriptor is not usable.
    #[error("the network cannot be reached")]
    Io(#[source] io::Error),
}

/// The other side of a network device. Nothing here waits.
pub trait Frames: Send {
    /// Takes a frame. Only to be called when [`Frames::flush`] said that nothing is left of the one before.
    ///
    /// # Errors
    /// The link is lost.
    fn send(&mut self, frame: &[u8]) -> Result<(), LinkLost>;

    /// Sends what is left of the last frame; whether all of it is out. Otherwise the descriptor will be writable.
    ///
    /// # Errors
    /// The link is lost.
    fn flush(&mut self) -> Result<bool, LinkLost>;

    /// The next frame, again and again until [`Frames::received`]; at most [`LONGEST_FRAME`] bytes. Without one, the
    /// descriptor will be readable.
    ///
    /// # Errors
    /// The link is lost.
    fn receive(&mut self) -> Result<Option<&[u8]>, LinkLost>;

    /// Lets go of the frame that [`Frames::receive`] gave.
    fn received(&mut self);

    /// What to wait for.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Whether there is another side at present.
    fn is_connected(&self) -> bool {
        true
    }

    /// Takes another side in place of the one that was lost, if one has come. Where none ever comes, [`Return::Never`].
    fn reconnect(&mut self) -> Return {
        Return::Never
    }
}

/// What becomes of a link that was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// There is another side, with which frames begin anew.
    Now,
    /// When one comes, the descriptor will be readable.
    Later,
    /// It stays lost.
    Never,
}
