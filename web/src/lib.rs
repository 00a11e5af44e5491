//! The functions that a page in the browser calls. `web/page/worker.js` is their one caller.
//!
//! A module is instantiated once for an encoder, and then takes one image after the other:
//!
//! 1. [`reserve`] memory for the encoder's file, write the file there, [`open`];
//! 2. for each image: [`reserve`], write the file, [`prepare`], [`encode`], read [`embedding`].
//!
//! A function that fails returns 0 and leaves a sentence at [`message`]. Addresses are valid until the next call. Only in the module
//! do the functions have these names for a linker: elsewhere `open` is somebody else's.

mod aligned;
mod embedder;

use std::cell::RefCell;

use aligned::AlignedBytes;
pub use embedder::{Embedder, Prepared};

#[derive(Default)]
struct State {
    /// What the page writes: an encoder's file, then images' files.
    input: AlignedBytes,
    embedder: Option<Embedder<'static>>,
    message: String,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

/// Makes room for a file of `len` bytes and returns where it is to be written; null where there is no memory for it.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn reserve(len: usize) -> *mut u8 {
    STATE.with_borrow_mut(|state| {
        // The room before goes first, so that there is never more than one.
        state.input = AlignedBytes::default();
        match AlignedBytes::zeroed(len) {
            Some(input) => {
                state.input = input;
                state.input.get_mut().as_mut_ptr()
            }
            None => std::ptr::null_mut(),
        }
    })
}

/// Takes the reserved bytes as an encoder's file, for as long as the module lives. Returns 1, with the encoder at [`message`]: back
/// end, side of an image in pixels, channels, values of an embedding, `class` or `mean`, and name, separated by tabs.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn open() -> u32 {
    step(|state| {
        // An instance has one encoder and ends with it.
        let file: &'static mut AlignedBytes = Box::leak(Box::new(std::mem::take(&mut state.input)));
        let embedder = Embedder::new(file.get())?;
        state.message = embedder.to_string();
        state.embedder = Some(embedder);
        Ok(1)
    })
}

/// Decodes the reserved bytes, a JPEG or PNG file, and cuts out what the encoder looks at. Returns 1, or 2 where coded data of the
/// image are damaged and were decoded as far as they go.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn prepare() -> u32 {
    step(|state| {
        let input = std::mem::take(&mut state.input);
        Ok(match embedder(&mut state.embedder)?.prepare(input.get())? {
            Prepared::Whole => 1,
            Prepared::Damaged => 2,
        })
    })
}

/// Embeds the image prepared last. Returns 1.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn encode() -> u32 {
    step(|state| embedder(&mut state.embedder)?.encode().map(|()| 1))
}

/// Where the last embedding lies: f32 values, as many as [`open`] said.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn embedding() -> *const f32 {
    STATE.with_borrow(|state| match &state.embedder {
        Some(embedder) => embedder.embedding().as_ptr(),
        None => std::ptr::null(),
    })
}

/// Where the last text lies, UTF-8.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn message() -> *const u8 {
    STATE.with_borrow(|state| state.message.as_ptr())
}

/// Bytes of the last text.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn message_len() -> usize {
    STATE.with_borrow(|state| state.message.len())
}

/// Runs a step; its failure becomes the message.
fn step(run: impl FnOnce(&mut State) -> Result<u32, String>) -> u32 {
    STATE.with_borrow_mut(|state| match run(state) {
        Ok(done) => done,
        Err(reason) => {
            state.message = reason;
            0
        }
    })
}

fn embedder<'s>(embedder: &'s mut Option<Embedder<'static>>) -> Result<&'s mut Embedder<'static>, String> {
    embedder
        .as_mut()
        .ok_or_else(|| "there is no encoder yet: open one first".into())
}
