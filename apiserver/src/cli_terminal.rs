//! The terminal that the client runs in, handed to a process elsewhere.

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io;

use crate::exec::frames::Size;

/// Whether both ends of a conversation with a person are there.
pub(crate) fn is_whole() -> bool {
    isatty(io::stdin()) && isatty(io::stdout())
}

/// None when the standard output is no terminal, or does not know.
pub(crate) fn size() -> Option<Size> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(Size { rows: size.ws_row, cols: size.ws_col })
}

/// Keys go through as they are typed, until it is dropped: the terminal is then as it was.
pub(crate) struct Raw(Termios);

impl Raw {
    /// Of the standard input; none when that is no terminal.
    pub(crate) fn begin() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Flush, &raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}
