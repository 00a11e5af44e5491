//! [`tec_fuzz::targets::encoder_file`] under libFuzzer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tec_fuzz::targets::encoder_file;

fuzz_target!(
    init: tec_fuzz::seeds::write_if_asked(encoder_file::seeds()),
    |data: &[u8]| encoder_file::run(data)
);
