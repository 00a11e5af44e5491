//! [`tec_fuzz::targets::forged_file`] under libFuzzer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tec_fuzz::targets::forged_file;

fuzz_target!(
    init: tec_fuzz::seeds::write_if_asked(forged_file::seeds()),
    |data: &[u8]| forged_file::run(data)
);
