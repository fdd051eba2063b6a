//! The terminal, while a machine's serial line is on it.

use std::io::{self, IsTerminal};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// A terminal in raw mode; as it was when this is dropped.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Puts the terminal into raw mode; none when standard input is no terminal. Ctrl-C still reaches this program.
    pub(crate) fn enter() -> io::Result<Option<Raw>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.output_modes = before.output_modes;
        raw.local_modes |= rustix::termios::LocalModes::ISIG;
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Raw { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // It may be gone; there is nobody to tell then.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
