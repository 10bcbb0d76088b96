//! What API server and agent say to each other about a process of `GET /exec`, after the agent has answered
//! [`Request::Exec`](crate::agent::Request::Exec) with `Done`: frames of one byte that says which it is, four bytes of length (big
//! endian), and so many bytes. Either side may be taken over: what the other one reads is bounded.

use serde::{Deserialize, Serialize};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes of input or output in one frame, or in one message of a client.
pub const LARGEST: usize = 64 << 10;

/// Of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub rows: u16,
    pub cols: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToAgent {
    Input(Vec<u8>),
    EndOfInput,
    Resized(Size),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromAgent {
    Output(Vec<u8>),
    /// Output on stderr, where that comes apart.
    Errors(Vec<u8>),
    /// One more frame of input was taken.
    Taken,
    /// The last one. 128 + n for signal n.
    Exited(u8),
}

impl ToAgent {
    pub async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        match self {
            Self::Input(data) => write(to, b'i', data).await,
            Self::EndOfInput => write(to, b'e', &[]).await,
            Self::Resized(Size { rows, cols }) => {
                let ([a, b], [c, d]) = (rows.to_be_bytes(), cols.to_be_bytes());
                write(to, b's', &[a, b, c, d]).await
            }
        }
    }

    /// None when the other side has ended it between two frames.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let Some((kind, data)) = read(from).await? else { return Ok(None) };
        match (kind, data.as_slice()) {
            (b'i', _) => Ok(Some(Self::Input(data))),
            (b'e', []) => Ok(Some(Self::EndOfInput)),
            (b's', &[a, b, c, d]) => {
                let size = Size { rows: u16::from_be_bytes([a, b]), cols: u16::from_be_bytes([c, d]) };
                Ok(Some(Self::Resized(size)))
            }
            _ => Err(unknown(kind)),
        }
    }
}

impl FromAgent {
    pub async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        match self {
            Self::Output(data) => write(to, b'o', data).await,
            Self::Errors(data) => write(to, b'r', data).await,
            Self::Taken => write(to, b't', &[]).await,
            Self::Exited(code) => write(to, b'x', &[*code]).await,
        }
    }

    /// None when the other side has ended it between two frames.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let Some((kind, data)) = read(from).await? else { return Ok(None) };
        match (kind, data.as_slice()) {
            (b'o', _) => Ok(Some(Self::Output(data))),
            (b'r', _) => Ok(Some(Self::Errors(data))),
            (b't', []) => Ok(Some(Self::Taken)),
            (b'x', &[code]) => Ok(Some(Self::Exited(code))),
            _ => Err(unknown(kind)),
        }
    }
}

fn unknown(kind: u8) -> io::Error {
    let reason = format!("a frame {:?} of that length is none of this protocol", char::from(kind));
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

async fn write(to: &mut (impl AsyncWrite + Unpin), kind: u8, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).ok().filter(|_| data.len() <= LARGEST).ok_or_else(too_long)?;
    let frame = [&[kind], &length.to_be_bytes()[..], data].concat();
    to.write_all(&frame).await
}

async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut kind = [0];
    if from.read(&mut kind).await? == 0 {
        return Ok(None);
    }
    let length = from.read_u32().await?;
    let length = usize::try_from(length).ok().filter(|length| *length <= LARGEST).ok_or_else(too_long)?;
    let mut data = vec![0; length];
    from.read_exact(&mut data).await?;
    let [kind] = kind;
    Ok(Some((kind, data)))
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a frame is longer than {LARGEST} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_as_they_were_sent() {
        let mut wire = Vec::new();
        let sent = [
            ToAgent::Input(b"ls\n".to_vec()),
            ToAgent::Input(vec![7; LARGEST]),
            ToAgent::Resized(Size { rows: 24, cols: 300 }),
            ToAgent::EndOfInput,
        ];
        for frame in &sent {
            frame.write(&mut wire).await.unwrap();
        }
        let mut from = wire.as_slice();
        for frame in sent {
            assert_eq!(ToAgent::read(&mut from).await.unwrap(), Some(frame));
        }
        assert_eq!(ToAgent::read(&mut from).await.unwrap(), None);
        let mut wire = Vec::new();
        let sent = [
            FromAgent::Output(vec![]),
            FromAgent::Errors(b"no\n".to_vec()),
            FromAgent::Taken,
            FromAgent::Exited(137),
        ];
        for frame in &sent {
            frame.write(&mut wire).await.unwrap();
        }
        let mut from = wire.as_slice();
        for frame in sent {
            assert_eq!(FromAgent::read(&mut from).await.unwrap(), Some(frame));
        }
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused_before_it_takes_memory() {
        for (wire, expected) in [
            (&b"i\xff\xff\xff\xff"[..], "longer than"),
            (b"i\x00\x01\x00\x01", "longer than"),
            (b"i\x00\x00\x00\x02x", "eof"),
            (b"i\x00\x00", "eof"),
            (b"s\x00\x00\x00\x03abc", "'s' of that length"),
            (b"o\x00\x00\x00\x00", "'o' of that length"),
        ] {
            let error = ToAgent::read(&mut &*wire).await.unwrap_err();
            let error = match error.kind() {
                io::ErrorKind::UnexpectedEof => "eof".to_owned(),
                _ => error.to_string(),
            };
            assert!(error.contains(expected), "{wire:?}: {error}");
        }
        assert!(FromAgent::read(&mut &b"x\x00\x00\x00\x02ab"[..]).await.is_err());
        assert!(write(&mut Vec::new(), b'i', &vec![0; LARGEST + 1]).await.is_err());
    }
}
