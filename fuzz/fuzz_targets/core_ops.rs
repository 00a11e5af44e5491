//! [`tec_fuzz::targets::core_ops`] under libFuzzer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tec_fuzz::targets::core_ops;

fuzz_target!(
    init: tec_fuzz::seeds::write_if_asked(core_ops::seeds()),
    |data: &[u8]| core_ops::run(data)
);
