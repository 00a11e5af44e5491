//! [`tec_fuzz::targets::data_source`] under libFuzzer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tec_fuzz::targets::data_source;

fuzz_target!(
    init: tec_fuzz::seeds::write_if_asked(data_source::seeds()),
    |data: &[u8]| data_source::run(data)
);
