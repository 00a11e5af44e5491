//! Every operation with values of any kind and sizes that mostly fit together.

use crate::input::{Random, Source};
use crate::operations;

/// Inputs to start from.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut random = Random(3);
    let seed = |number: u8| {
        let mut seed: Vec<u8> = (0..64).map(|_| random.next_u64() as u8).collect();
        // Plenty of memory for three of four; each operation four times.
        let short = number % 4 == 3;
        seed[0] = if short { 7 } else { 0 };
        seed[if short { 5 } else { 1 }] = number / 4;
        seed
    };
    (0..112).map(seed).collect()
}

/// Takes one input.
///
/// # Panics
/// Where something does not hold.
pub fn run(data: &[u8]) {
    operations::run(&mut Source::new(data));
}
