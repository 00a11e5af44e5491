//! [`tec_fuzz::targets::request`] under libFuzzer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tec_fuzz::targets::request;

fuzz_target!(
    init: tec_fuzz::seeds::write_if_asked(request::seeds()),
    |data: &[u8]| request::run(data)
);
