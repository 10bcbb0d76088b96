//! The API's socket without a client: for what no client would send.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::node::Node;

/// One connection.
pub struct Wire(UnixStream);

impl Wire {
    #[track_caller]
    pub fn open(node: &Node) -> Self {
        let stream = UnixStream::connect(node.path("api.sock")).expect("a connection to the API");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        stream.set_write_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        Self(stream)
    }

    /// Sends as much as the other side takes; false when it has closed the connection before the end.
    pub fn send(&mut self, data: &[u8]) -> bool {
        self.0.write_all(data).is_ok()
    }

    /// What comes until the other side closes, or for a minute.
    pub fn read(&mut self) -> String {
        let mut data = Vec::new();
        // A connection that is reset after its answer has still answered.
        let _ = (&self.0).take(1 << 20).read_to_end(&mut data);
        String::from_utf8_lossy(&data).into_owned()
    }
}
