//! The terminal, while a machine's serial line is on it.

use std::io::{self, IsTerminal};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};

/// A terminal in raw mode; as it was when this is dropped.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Puts the terminal into raw mode; none when standard input is no terminal. Of all keys, Ctrl-C alone is this program's.
    pub(crate) fn enter() -> io::Result<Option<Raw>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        tcsetattr(&stdin, OptionalActions::Now, &raw(&before))?;
        Ok(Some(Raw { before }))
    }
}

/// The raw mode of a terminal that is in this one.
fn raw(before: &Termios) -> Termios {
    let mut raw = before.clone();
    raw.make_raw();
    raw.output_modes = before.output_modes;
    raw.local_modes |= LocalModes::ISIG;
    // By these keys the machine would be ended at once, or stand still.
    for key in [SpecialCodeIndex::VQUIT, SpecialCodeIndex::VSUSP] {
        raw.special_codes[key] = libc::_POSIX_VDISABLE;
    }
    raw
}

impl Drop for Raw {
    fn drop(&mut self) {
        // It may be gone; there is nobody to tell then.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::{Mode, OFlags};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    use super::*;

    /// What reaches whoever reads the terminal, of keys that are typed.
    fn typed(keyboard: &OwnedFd, terminal: &OwnedFd, keys: &[u8]) -> Vec<u8> {
        rustix::io::write(keyboard, keys).unwrap();
        let mut polled = [PollFd::new(terminal, PollFlags::IN)];
        let soon = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(poll(&mut polled, Some(&soon)).unwrap(), 1, "nothing is typed");
        let mut bytes = [0; 16];
        let length = rustix::io::read(terminal, &mut bytes).unwrap();
        bytes[..length].to_vec()
    }

    #[test]
    fn all_keys_but_ctrl_c_reach_the_guest() {
        const CTRL_C: u8 = 3;
        const CTRL_Z: u8 = 0x1a;
        const CTRL_BACKSLASH: u8 = 0x1c;
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let path = ptsname(&keyboard, Vec::new()).unwrap();
        let terminal = rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let before = tcgetattr(&terminal).unwrap();
        tcsetattr(&terminal, OptionalActions::Now, &raw(&before)).unwrap();
        for key in [CTRL_Z, CTRL_BACKSLASH, 4, 0x11, 0x13, 0x16, b'\r', b'a'] {
            assert_eq!(typed(&keyboard, &terminal, &[key]), [key]);
        }
        assert_eq!(typed(&keyboard, &terminal, &[CTRL_C, b'a']), [b'a']);
    }
}
