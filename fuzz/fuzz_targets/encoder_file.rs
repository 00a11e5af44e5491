//! Any bytes as an encoder file: as they are, and with a length and a checksum that agree.
//!
//! With `FUZZ_CONTROL` set, an unlikely version panics: `ci/fuzz` lets the fuzzer find that, to know that it finds something.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tec_edge::Encoder;
use tec_edge::format::{HEADER_LEN, MAGIC};
use tec_fuzz::encoder::{GEOMETRIES, exercise, file, header, seal};
use tec_fuzz::input::{Bytes, Source};
use tec_fuzz::seeds;

static CONTROL: OnceLock<bool> = OnceLock::new();

/// The version that panics.
const PLANTED: u32 = 0x0dec_0de5;

fuzz_target!(
    init: {
        let files = GEOMETRIES.iter().zip(0..).map(|(&geometry, seed)| file(&header(geometry), seed));
        seeds::write_if_asked(files.chain([MAGIC.to_vec()]));
        let _ = CONTROL.set(std::env::var_os("FUZZ_CONTROL").is_some());
    },
    |data: &[u8]| {
        let mut bytes = Bytes::new(data);
        exercise(&bytes, &mut Source::new(data));
        if CONTROL.get() == Some(&true) && data.starts_with(&MAGIC) {
            let version = data.get(8..12).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
            assert_ne!(version, Some(PLANTED), "planted");
        }
        for start in 1..data.len().min(16) {
            assert!(Encoder::from_bytes(&bytes.get()[start..]).is_err(), "accepted at no boundary");
        }
        if data.len() >= HEADER_LEN {
            seal(bytes.get_mut());
            exercise(&bytes, &mut Source::new(data));
        }
    }
);
