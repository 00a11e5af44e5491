//! [`tec_fuzz::targets::image_file`] under libFuzzer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tec_fuzz::targets::image_file;

fuzz_target!(
    init: tec_fuzz::seeds::write_if_asked(image_file::seeds()),
    |data: &[u8]| image_file::run(data)
);
