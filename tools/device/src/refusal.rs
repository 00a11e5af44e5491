//! Why a device did not compute something.

use core::fmt;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u16)]
pub enum Status {
    /// The results follow.
    Done = 0,
    /// The device has too little memory for it.
    DoesNotFit = 1,
    /// The device does not know the operation.
    Unknown = 2,
    /// The request makes no sense; a text follows.
    Malformed = 3,
    /// The operation refused its arguments with a typed error; its text follows.
    Refused = 4,
}

impl Status {
    /// The status of a number, if it is one.
    pub const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Done,
            1 => Self::DoesNotFit,
            2 => Self::Unknown,
            3 => Self::Malformed,
            4 => Self::Refused,
            _ => return None,
        })
    }
}

/// Why a request was not computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Refusal {
    /// Too little memory.
    DoesNotFit,
    /// No such operation.
    Unknown,
    /// What is wrong with the request.
    Malformed(&'static str),
    /// An error of `tec-core`.
    Core(tec_core::Error),
    /// An error of `tec-edge`.
    Edge(tec_edge::Error),
}

impl Refusal {
    /// What an answer says.
    pub fn status(&self) -> Status {
        match self {
            Self::DoesNotFit => Status::DoesNotFit,
            Self::Unknown => Status::Unknown,
            Self::Malformed(_) => Status::Malformed,
            Self::Core(_) | Self::Edge(_) => Status::Refused,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DoesNotFit => f.write_str("does not fit the device's memory"),
            Self::Unknown => f.write_str("the device does not know this operation"),
            Self::Malformed(what) => f.write_str(what),
            Self::Core(e) => e.fmt(f),
            Self::Edge(e) => e.fmt(f),
        }
    }
}

impl From<tec_core::Error> for Refusal {
    fn from(error: tec_core::Error) -> Self {
        Self::Core(error)
    }
}

impl From<tec_edge::Error> for Refusal {
    fn from(error: tec_edge::Error) -> Self {
        Self::Edge(error)
    }
}
