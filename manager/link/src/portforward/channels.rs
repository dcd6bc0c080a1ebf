//! Kubernetes' channels inside WebSocket messages, pure: which bytes are data, which are the kubelet's words.

use super::frame::Opcode;

/// Follows the messages of a port-forward to one port.
#[derive(Debug, Default)]
pub(super) struct Channels {
    /// Channel of the message that is being read; `None` before its first byte.
    channel: Option<u8>,
    in_message: bool,
    /// Bytes of the port number that came, for each channel.
    port_bytes: [u8; 2],
    words: Vec<u8>,
}

/// What the next bytes of a message are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Data, all that is left of this frame.
    Data,
    /// This many bytes were taken in; 0: more are needed to tell.
    Taken(usize),
}

impl Channels {
    /// The channel of the bytes themselves.
    pub(super) const DATA: u8 = 0;
    /// The channel on which the kubelet says what is wrong.
    const ERROR: u8 = 1;
    /// Each channel starts with its port, two bytes.
    const PORT_BYTES: u8 = 2;
    /// More words than this are cut off.
    const MAX_WORDS: usize = 4096;

    /// A frame starts.
    pub(super) fn start(&mut self, opcode: Opcode) -> Result<(), &'static str> {
        match (opcode, self.in_message) {
            (Opcode::Continuation, true) => Ok(()),
            (Opcode::Continuation, false) | (Opcode::Binary | Opcode::Text, true) => {
                Err("WebSocket frames out of order")
            }
            (Opcode::Binary | Opcode::Text, false) => {
                self.in_message = true;
                self.channel = None;
                Ok(())
            }
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => Ok(()),
        }
    }

    /// Looks at the next bytes of the payload, as many as are there.
    pub(super) fn piece(&mut self, bytes: &[u8]) -> Result<Piece, &'static str> {
        let Some(channel) = self.channel else {
            let Some(channel) = bytes.first() else { return Ok(Piece::Taken(0)) };
            if *channel > Self::ERROR {
                return Err("data on a channel that is no part of the port-forward");
            }
            self.channel = Some(*channel);
            return Ok(Piece::Taken(1));
        };
        let seen = &mut self.port_bytes[usize::from(channel)];
        if *seen < Self::PORT_BYTES {
            let take = bytes.len().min(usize::from(Self::PORT_BYTES - *seen));
            *seen += take as u8;
            return Ok(Piece::Taken(take));
        }
        if channel == Self::DATA {
            return Ok(Piece::Data);
        }
        let room = Self::MAX_WORDS - self.words.len();
        self.words.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(Piece::Taken(bytes.len()))
    }

    /// A frame has ended; returns the kubelet's words when they are complete.
    pub(super) fn finish(&mut self, fin: bool) -> Option<String> {
        if !fin {
            return None;
        }
        self.in_message = false;
        if self.words.is_empty() {
            return None;
        }
        let words = std::mem::take(&mut self.words);
        Some(String::from_utf8_lossy(&words).trim().to_owned())
    }
}
