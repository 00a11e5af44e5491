//! Frames: how messages travel over a stream of bytes.
//!
//! A frame is 16 bytes (u32 magic, u8 kind, 3 zeros, u32 payload length, u32 CRC-32 of the payload) and the payload.

/// Begins every frame.
pub const MAGIC: u32 = u32::from_le_bytes(*b"TECF");

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 16;

/// The version of this protocol; both sides must have the same.
pub const PROTOCOL: u16 = 1;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// To the device: who are you? From the device: a payload whose head is (protocol, 0), then memory in bytes u32 `[1]`
    /// and the device's name u8.
    Hello = 1,
    /// To the device: an operation and its arguments.
    Request = 2,
    /// From the device: a status and the results.
    Answer = 3,
    /// From the device, before an answer: part of a trace. The head is (stage, block), then the offset u32 `[1]` and the
    /// values.
    Part = 4,
    /// From the device: bytes of its log, as defmt encodes them.
    Log = 5,
    /// To the device: end now.
    Goodbye = 6,
    /// From the device: it fails and ends; a text.
    Panic = 7,
}

impl FrameKind {
    /// The kind of a number, if it is one.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::Request,
            3 => Self::Answer,
            4 => Self::Part,
            5 => Self::Log,
            6 => Self::Goodbye,
            7 => Self::Panic,
            _ => return None,
        })
    }
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the payload is.
    pub kind: FrameKind,
    /// Bytes of the payload.
    pub len: u32,
    /// CRC-32 of the payload.
    pub crc: u32,
}

impl Header {
    /// The header of a payload that comes in pieces.
    pub fn of(kind: FrameKind, payload: &[&[u8]]) -> Self {
        let mut crc = crc32fast::Hasher::new();
        let mut len = 0u32;
        for piece in payload {
            crc.update(piece);
            len = len.saturating_add(piece.len() as u32);
        }
        Self {
            kind,
            len,
            crc: crc.finalize(),
        }
    }

    /// Whether the payload arrived whole.
    pub fn matches(&self, payload: &[u8]) -> bool {
        payload.len() == self.len as usize && crc32fast::hash(payload) == self.crc
    }

    /// As bytes.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let kind = [self.kind as u8, 0, 0, 0];
        let fields = [
            MAGIC.to_le_bytes(),
            kind,
            self.len.to_le_bytes(),
            self.crc.to_le_bytes(),
        ];
        for (slot, field) in bytes.as_chunks_mut().0.iter_mut().zip(fields) {
            *slot = field;
        }
        bytes
    }

    /// From bytes; nothing if they are no header.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let [magic, [kind, 0, 0, 0], len, crc] = *bytes.as_chunks::<4>().0.first_chunk::<4>()? else {
            return None;
        };
        if u32::from_le_bytes(magic) != MAGIC {
            return None;
        }
        Some(Self {
            kind: FrameKind::from_number(kind)?,
            len: u32::from_le_bytes(len),
            crc: u32::from_le_bytes(crc),
        })
    }
}
