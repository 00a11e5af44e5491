//! Lists of tensors in a payload: read in place, written in place.
//!
//! A payload begins with a head of 16 bytes (u16 what, u16 zero, u32 number, u64 machine instructions, 0 where they are not
//! counted). Then come the tensors: 16 bytes
//! (u8 type, 3 zeros, u32 elements, 8 zeros), the elements, zeros up to the next 16-byte boundary. Shapes do not travel;
//! operations get the sizes they need as arguments.

use bytemuck::Pod;

use crate::refusal::Refusal;

/// Bytes of a payload's head, and of each tensor's.
pub const HEAD_LEN: usize = 16;

/// Where payloads and their tensors begin.
pub const ALIGNMENT: usize = 16;

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Kind {
    U8 = 0,
    I8 = 1,
    I16 = 2,
    I32 = 3,
    U32 = 4,
    I64 = 5,
    U64 = 6,
    F32 = 7,
    F64 = 8,
}

impl Kind {
    /// The type of a number, if it is one.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::I16,
            3 => Self::I32,
            4 => Self::U32,
            5 => Self::I64,
            6 => Self::U64,
            7 => Self::F32,
            8 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::I16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }
}

/// Types that tensors are made of.
pub trait Element: Pod {
    /// The type's number in a payload.
    const KIND: Kind;
}

macro_rules! elements {
    ($($type:ty => $kind:ident),*) => { $(impl Element for $type { const KIND: Kind = Kind::$kind; })* };
}
elements!(u8 => U8, i8 => I8, i16 => I16, i32 => I32, u32 => U32, i64 => I64, u64 => U64, f32 => F32, f64 => F64);

/// What a payload's head says: which operation or status, and the request's number.
pub fn head(payload: &[u8]) -> Option<(u16, u32)> {
    let head = payload.first_chunk::<HEAD_LEN>()?;
    let what = u16::from_le_bytes(*head.first_chunk()?);
    let number = u32::from_le_bytes(head.get(4..8)?.try_into().ok()?);
    Some((what, number))
}

/// A payload's head.
pub fn write_head(what: u16, number: u32) -> [u8; HEAD_LEN] {
    let mut head = [0; HEAD_LEN];
    let fields = what.to_le_bytes().into_iter().chain([0; 2]).chain(number.to_le_bytes());
    for (slot, byte) in head.iter_mut().zip(fields) {
        *slot = byte;
    }
    head
}

/// A head that also says how many instructions an answer took.
pub fn with_instructions(mut head: [u8; HEAD_LEN], count: u64) -> [u8; HEAD_LEN] {
    for (slot, byte) in head.iter_mut().skip(8).zip(count.to_le_bytes()) {
        *slot = byte;
    }
    head
}

/// A tensor's head.
pub fn write_tensor_head(kind: Kind, elements: u32) -> [u8; HEAD_LEN] {
    let mut head = [0; HEAD_LEN];
    let fields = [kind as u8, 0, 0, 0].into_iter().chain(elements.to_le_bytes());
    for (slot, byte) in head.iter_mut().zip(fields) {
        *slot = byte;
    }
    head
}

/// A product of sizes that saturates, so that absurd sizes do not fit instead of wrapping.
pub(crate) fn product(sizes: &[usize]) -> usize {
    sizes.iter().fold(1, |total: usize, &size| total.saturating_mul(size))
}

/// Reads the tensors of a payload, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Tensors<'a> {
    rest: &'a [u8],
}

impl<'a> Tensors<'a> {
    /// The tensors after a payload's head.
    pub fn new(payload: &'a [u8]) -> Self {
        Self {
            rest: payload.get(HEAD_LEN..).unwrap_or(&[]),
        }
    }

    /// Whether all were read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next tensor's type and its elements as bytes.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] where there is none, or where it is cut off.
    pub fn take_bytes(&mut self) -> Result<(Kind, &'a [u8]), Refusal> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<HEAD_LEN>()
            .ok_or(Refusal::Malformed("a tensor is missing"))?;
        let kind = Kind::from_number(head[0]).ok_or(Refusal::Malformed("a tensor has an unknown type"))?;
        let elements = head
            .get(4..8)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u32::from_le_bytes);
        let cut_off = Refusal::Malformed("a tensor is cut off");
        let bytes = kind.size().checked_mul(elements as usize).ok_or(cut_off)?;
        let padded = bytes.checked_next_multiple_of(ALIGNMENT).ok_or(cut_off)?;
        let (tensor, rest) = rest.split_at_checked(padded).ok_or(cut_off)?;
        self.rest = rest;
        Ok((kind, tensor.get(..bytes).ok_or(cut_off)?))
    }

    /// The next tensor, of this type.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] where there is none, it has another type, is cut off, or lies at no boundary.
    pub fn take<T: Element>(&mut self) -> Result<&'a [T], Refusal> {
        let (kind, bytes) = self.take_bytes()?;
        if kind != T::KIND {
            return Err(Refusal::Malformed("a tensor has another type than the operation takes"));
        }
        bytemuck::try_cast_slice(bytes).map_err(|_| Refusal::Malformed("a tensor is not aligned"))
    }

    /// The next tensor, of this type and `N` elements.
    ///
    /// # Errors
    /// As [`take`](Self::take), and for another number of elements.
    pub fn numbers<T: Element, const N: usize>(&mut self) -> Result<[T; N], Refusal> {
        self.take()?
            .try_into()
            .map_err(|_| Refusal::Malformed("a tensor has another length than the operation takes"))
    }

    /// `N` sizes or counts, which travel as u32.
    ///
    /// # Errors
    /// As [`numbers`](Self::numbers).
    pub fn sizes<const N: usize>(&mut self) -> Result<[usize; N], Refusal> {
        Ok(self.numbers::<u32, N>()?.map(|n| n as usize))
    }
}

/// Writes tensors into memory, one after the other, and lends the rest as scratch memory.
#[derive(Debug)]
pub struct Results<'m> {
    rest: &'m mut [u8],
    written: usize,
}

impl<'m> Results<'m> {
    /// Writes from the start of `memory`, which begins at a 16-byte boundary.
    pub fn new(memory: &'m mut [u8]) -> Self {
        Self {
            rest: memory,
            written: 0,
        }
    }

    /// Bytes written so far.
    pub fn written(&self) -> usize {
        self.written
    }

    /// A new result of `len` elements, all zero, to be filled.
    ///
    /// # Errors
    /// [`Refusal::DoesNotFit`].
    pub fn tensor<T: Element>(&mut self, len: usize) -> Result<&'m mut [T], Refusal> {
        let elements = u32::try_from(len).map_err(|_| Refusal::DoesNotFit)?;
        self.front(HEAD_LEN)?
            .copy_from_slice(&write_tensor_head(T::KIND, elements));
        let bytes = size_of::<T>().checked_mul(len).ok_or(Refusal::DoesNotFit)?;
        let padded = bytes.checked_next_multiple_of(ALIGNMENT).ok_or(Refusal::DoesNotFit)?;
        let memory = self.front(padded)?;
        memory.fill(0);
        let memory = memory.get_mut(..bytes).ok_or(Refusal::DoesNotFit)?;
        bytemuck::try_cast_slice_mut(memory).map_err(|_| Refusal::DoesNotFit)
    }

    /// Writes a result.
    ///
    /// # Errors
    /// [`Refusal::DoesNotFit`].
    pub fn put<T: Element>(&mut self, values: &[T]) -> Result<(), Refusal> {
        self.tensor(values.len())?.copy_from_slice(values);
        Ok(())
    }

    /// Memory that is no result: `len` elements from the end of what is left, filled with a pattern that no operation may
    /// rely on.
    ///
    /// # Errors
    /// [`Refusal::DoesNotFit`].
    pub fn scratch<T: Element>(&mut self, len: usize) -> Result<&'m mut [T], Refusal> {
        let bytes = size_of::<T>().checked_mul(len).ok_or(Refusal::DoesNotFit)?;
        let padded = bytes.checked_next_multiple_of(ALIGNMENT).ok_or(Refusal::DoesNotFit)?;
        let whole = self.rest.len() / ALIGNMENT * ALIGNMENT;
        let start = whole.checked_sub(padded).ok_or(Refusal::DoesNotFit)?;
        let (rest, taken) = core::mem::take(&mut self.rest)
            .split_at_mut_checked(start)
            .ok_or(Refusal::DoesNotFit)?;
        self.rest = rest;
        let memory = taken.get_mut(..bytes).ok_or(Refusal::DoesNotFit)?;
        memory.fill(0xA5);
        bytemuck::try_cast_slice_mut(memory).map_err(|_| Refusal::DoesNotFit)
    }

    fn front(&mut self, len: usize) -> Result<&'m mut [u8], Refusal> {
        if len > self.rest.len() {
            return Err(Refusal::DoesNotFit);
        }
        let (taken, rest) = core::mem::take(&mut self.rest)
            .split_at_mut_checked(len)
            .ok_or(Refusal::DoesNotFit)?;
        self.rest = rest;
        self.written += len;
        Ok(taken)
    }
}
