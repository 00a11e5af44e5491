//! Every operation with values of any kind and sizes that mostly fit together.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tec_fuzz::input::{Random, Source};
use tec_fuzz::{operations, seeds};

fuzz_target!(
    init: {
        let mut random = Random(3);
        seeds::write_if_asked((0..112u8).map(|number| {
            let mut seed: Vec<u8> = (0..64).map(|_| random.next_u64() as u8).collect();
            // Plenty of memory for three of four; each operation four times.
            seed[0] = if number % 4 == 3 { 7 } else { 0 };
            seed[if number % 4 == 3 { 5 } else { 1 }] = number / 4;
            seed
        }));
    },
    |data: &[u8]| operations::run(&mut Source::new(data))
);
