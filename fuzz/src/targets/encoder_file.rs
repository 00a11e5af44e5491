//! Any bytes as an encoder file: as they are, and with a length and a checksum that agree.
//!
//! With `FUZZ_CONTROL` set, an unlikely version panics: `ci/fuzz` lets the fuzzer find that, to know that it finds something.

use std::sync::OnceLock;

use tec_edge::Encoder;
use tec_edge::format::{HEADER_LEN, MAGIC};

use crate::encoder::{exercise, file, headers, seal};
use crate::input::{Bytes, Source};

static CONTROL: OnceLock<bool> = OnceLock::new();

/// The version that panics.
const PLANTED: u32 = 0x0dec_0de5;

/// Inputs to start from.
pub fn seeds() -> Vec<Vec<u8>> {
    let files = headers().into_iter().zip(0..).map(|(header, seed)| file(&header, seed));
    files.chain([MAGIC.to_vec()]).collect()
}

/// Takes one input.
///
/// # Panics
/// Where something does not hold.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    exercise(&bytes, &mut Source::new(data));
    if *CONTROL.get_or_init(|| std::env::var_os("FUZZ_CONTROL").is_some()) && data.starts_with(&MAGIC) {
        let version = data
            .get(8..12)
            .and_then(|word| word.try_into().ok())
            .map(u32::from_le_bytes);
        assert_ne!(version, Some(PLANTED), "planted");
    }
    for start in 1..data.len().min(16) {
        assert!(
            Encoder::from_bytes(&bytes.get()[start..]).is_err(),
            "accepted at no boundary"
        );
    }
    if data.len() >= HEADER_LEN {
        seal(bytes.get_mut());
        exercise(&bytes, &mut Source::new(data));
    }
}
