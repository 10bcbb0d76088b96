//! `GET /exec`: a further process in a container that runs, over a websocket. The messages are Bottlerocket's:
//!
//! | message | from | is |
//! | --- | --- | --- |
//! | binary | client | input, at most 64 KiB of it |
//! | binary | server | output: stdout and stderr, in the order in which they were written |
//! | `{"Initialize": {"command": [{"Unix": [108, 115]}], "target": "web", "tty": null}}` | client | what to run, first of all; `"tty": {"size": {"rows": 24, "cols": 80}}` with a terminal |
//! | `"ContentComplete"` | client | the end of the input |
//! | `{"Winch": {"rows": 24, "cols": 80}}` | client | the terminal has another size |
//! | `{"Capacity": {"max_messages_outstanding": 16, "messages_written": 0}}` | server | how many messages of input may be on their way, and how many the process has taken |
//!
//! The server closes with 1000 when the process has ended, its exit code (128 + n for signal n) as the reason; with 1007 for what is no
//! message, 1008 for one that comes before `Initialize` or after the end of the input, 1009 for input beyond the capacity, and 1011 when
//! the process cannot run.
//!
//! With `"extended": true` in `Initialize`, which Bottlerocket does not know, messages of output begin with a byte, 1 for stdout and 2 for
//! stderr, and before it closes with anything but 1000 the server sends `{"Failed": "why"}`: the reason of a closing has but 123 bytes.
//!
//! With `"files": {"From": {"path": "/etc"}}` or `"files": {"Into": {"path": "/srv", "is_contents": false}}` in such an `Initialize`, in place
//! of a command, output or input are a tar stream of files of the container. It is the same route as they need the same: input that waits
//! for who takes it, either end's going, errors that come after the beginning, which an answer of HTTP cannot tell.
//!
//! The API server reads what the client sends, under its sandbox, and hands it to the agent in [`frames`]; a shim of the agent's runs the
//! process. Nobody keeps more than what is on its way: who does not read makes the one before it wait.

pub mod frames;
pub(crate) mod messages;
mod session;

pub(crate) use session::{Sessions, begin};
