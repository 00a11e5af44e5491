//! [`tec_fuzz::targets::pytorch_file`] under libFuzzer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tec_fuzz::targets::pytorch_file;

fuzz_target!(
    init: tec_fuzz::seeds::write_if_asked(pytorch_file::seeds()),
    |data: &[u8]| pytorch_file::run(data)
);
