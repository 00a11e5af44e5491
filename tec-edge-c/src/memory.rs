//! A C program's memory: what pointers must be before they become references, and which memory may not overlap.

use core::fmt::{self, Write};

use bytemuck::Pod;
use tec_edge::Encoder;

use crate::failure::Failure;
use crate::{tec_code, tec_encoder, tec_error};

/// The memory of one call, to find what overlaps.
pub(crate) struct Regions {
    regions: [Region; MOST],
    count: usize,
}

/// More than any call has.
const MOST: usize = 10;

#[derive(Clone, Copy, Default)]
struct Region {
    what: &'static str,
    start: usize,
    end: usize,
    written: bool,
}

impl Regions {
    pub(crate) fn new() -> Self {
        Self {
            regions: [Region::default(); MOST],
            count: 0,
        }
    }

    /// Memory that the call only reads.
    pub(crate) fn read<T>(&mut self, what: &'static str, pointer: *const T, len: usize) -> Result<(), Failure> {
        self.add(what, pointer, len, false)
    }

    /// Memory that the call writes.
    pub(crate) fn write<T>(&mut self, what: &'static str, pointer: *const T, len: usize) -> Result<(), Failure> {
        self.add(what, pointer, len, true)
    }

    fn add<T>(&mut self, what: &'static str, pointer: *const T, len: usize, written: bool) -> Result<(), Failure> {
        if pointer.is_null() {
            return Err(Failure::Null { what });
        }
        let by = pointer.addr() % align_of::<T>();
        if by != 0 {
            let boundary = align_of::<T>();
            return Err(Failure::Misaligned { what, boundary, by });
        }
        let too_long = Failure::TooLong { what, len };
        let bytes = len
            .checked_mul(size_of::<T>())
            .filter(|&bytes| isize::try_from(bytes).is_ok());
        let end = bytes
            .and_then(|bytes| pointer.addr().checked_add(bytes))
            .ok_or(too_long)?;
        let region = Region {
            what,
            start: pointer.addr(),
            end,
            written,
        };
        for other in self.regions.iter().take(self.count) {
            if (written || other.written) && region.start < other.end && other.start < region.end {
                let other = other.what;
                return Err(Failure::Overlap { what, other });
            }
        }
        if let Some(slot) = self.regions.get_mut(self.count) {
            *slot = region;
            self.count += 1;
        }
        Ok(())
    }
}

/// The values that a call reads.
///
/// # Safety
/// [`Regions`] has accepted them, and the caller has said that they are there.
pub(crate) unsafe fn values<'a, T: Pod>(pointer: *const T, len: usize) -> &'a [T] {
    // SAFETY: not NULL, aligned, no longer than an object can be, and nothing that is written overlaps them: `Regions` has looked.
    unsafe { core::slice::from_raw_parts(pointer, len) }
}

/// The values that a call writes.
///
/// # Safety
/// As [`values`].
pub(crate) unsafe fn values_mut<'a, T: Pod>(pointer: *mut T, len: usize) -> &'a mut [T] {
    // SAFETY: as in `values`; of what overlaps nothing else is a reference.
    unsafe { core::slice::from_raw_parts_mut(pointer, len) }
}

/// What `tec_encoder` holds after it was opened.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Opened {
    /// [`OPEN`].
    open: u64,
    pub(crate) encoder: Encoder<'static>,
    /// The file, by address and length.
    pub(crate) file: (*const u8, usize),
}

/// No text, number or pointer is likely to be this.
const OPEN: u64 = 0x9C3B_54EC_0DE5_A117;

const _: () = assert!(
    size_of::<Opened>() <= size_of::<tec_encoder>(),
    "raise TEC_ENCODER_WORDS"
);
const _: () = assert!(align_of::<Opened>() <= align_of::<tec_encoder>());

/// The encoder in a caller's memory.
///
/// # Safety
/// `encoder` is NULL or points to a `tec_encoder` that nothing writes meanwhile.
pub(crate) unsafe fn opened<'a>(encoder: *const tec_encoder) -> Result<&'a Opened, Failure> {
    Regions::new().read("encoder", encoder, 1)?;
    let opened = encoder.cast::<Opened>();
    // SAFETY: not NULL, aligned, and the first word of any `tec_encoder` is a number.
    if unsafe { (&raw const (*opened).open).read() } != OPEN {
        return Err(Failure::NotOpen);
    }
    // SAFETY: `set_opened` alone writes that word, after it has written the rest.
    Ok(unsafe { &*opened })
}

/// Writes the encoder, or that there is none.
///
/// # Safety
/// [`Regions`] has accepted `encoder` as written, and the caller has said that it is there; `file` is where `new` was read from.
pub(crate) unsafe fn set_opened(encoder: *mut tec_encoder, new: Option<(Encoder<'static>, (*const u8, usize))>) {
    // SAFETY: `Regions` has looked at the pointer; an `Opened` fits in size and alignment.
    unsafe {
        match new {
            Some((new, file)) => encoder.cast::<Opened>().write(Opened {
                open: OPEN,
                encoder: new,
                file,
            }),
            None => (&raw mut (*encoder.cast::<Opened>()).open).write(0),
        }
    }
}

/// What `tec_error` holds after a failure.
#[repr(C)]
#[derive(Clone, Copy)]
struct Reported {
    /// [`FAILED`].
    failed: u64,
    failure: Failure,
}

/// As unlikely as [`OPEN`].
const FAILED: u64 = 0xE7A1_9D06_F52B_83C4;

const _: () = assert!(
    size_of::<Reported>() <= 8 * crate::TEC_ERROR_WORDS,
    "raise TEC_ERROR_WORDS"
);
const _: () = assert!(align_of::<Reported>() <= align_of::<tec_error>());

/// What a function returns, and the failure for those who want its text.
///
/// # Safety
/// `error` is NULL or points to a `tec_error`.
pub(crate) unsafe fn report(result: Result<(), Failure>, error: *mut tec_error) -> tec_code {
    let code = result.as_ref().map_or_else(Failure::code, |()| tec_code::TEC_OK);
    if Regions::new().write("error", error, 1).is_ok() {
        // SAFETY: not NULL and aligned; a `Reported` fits in size and alignment.
        unsafe {
            (&raw mut (*error).code).write(code as i32);
            let to = (&raw mut (*error).opaque).cast::<Reported>();
            match result {
                Ok(()) => (&raw mut (*to).failed).write(0),
                Err(failure) => to.write(Reported {
                    failed: FAILED,
                    failure,
                }),
            }
        }
    }
    code
}

/// The failure that `report` has written, if it was one.
///
/// # Safety
/// `error` is NULL or points to a `tec_error`.
pub(crate) unsafe fn reported(error: *const tec_error) -> Result<Option<Failure>, Failure> {
    Regions::new().read("error", error, 1)?;
    // SAFETY: not NULL and aligned; `report` alone writes that first word, with a failure behind it.
    unsafe {
        let from = (&raw const (*error).opaque).cast::<Reported>();
        let failed = (&raw const (*from).failed).read() == FAILED;
        Ok(failed.then(|| (&raw const (*from).failure).read()))
    }
}

/// Writes a text with its terminator, cut off where it does not fit; returns the bytes of the whole text without the terminator.
///
/// # Safety
/// `to` is NULL or points to `len` bytes.
pub(crate) unsafe fn write_text(text: impl fmt::Display, to: *mut u8, len: usize) -> usize {
    let room = match Regions::new().write("text", to, len) {
        // SAFETY: `Regions` has accepted it.
        Ok(()) => unsafe { values_mut(to, len) },
        Err(_) => &mut [],
    };
    let mut text_to = Text { room, wanted: 0 };
    // It takes everything.
    let _ = write!(text_to, "{text}");
    let end = text_to.wanted.min(text_to.room.len().saturating_sub(1));
    if let Some(slot) = text_to.room.get_mut(end) {
        *slot = 0;
    }
    text_to.wanted
}

struct Text<'t> {
    room: &'t mut [u8],
    wanted: usize,
}

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.room.get_mut(self.wanted..).unwrap_or_default();
        room.iter_mut()
            .zip(text.as_bytes())
            .for_each(|(slot, &byte)| *slot = byte);
        self.wanted = self.wanted.saturating_add(text.len());
        Ok(())
    }
}
