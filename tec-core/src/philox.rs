//! Philox4x32-10, a counter-based generator (Salmon, Moraes, Dror, Shaw: *Parallel random numbers: as easy as
//! 1, 2, 3*, SC 2011), and the noise of a run drawn from it.
//!
//! A value depends on the run's seed, the epoch, the sample's number, the stream and its index, and on nothing else:
//! not on the batch, the worker, the machine, or whether the run was resumed.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Four random words from a counter and a key.
#[inline(always)]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let (high0, low0) = wide_product(MULTIPLIERS[0], c0);
        let (high1, low1) = wide_product(MULTIPLIERS[1], c2);
        (c0, c1, c2, c3) = (high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

#[inline(always)]
fn wide_product(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

/// What random numbers are drawn for; different streams never share a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// Which patches are removed: one value a patch.
    Mask = 0,
    /// Crops, flips and the like.
    Augment = 1,
    /// The order of samples in an epoch.
    Order = 2,
    /// Initial weights.
    Init = 3,
}

/// The noise of one sample in one epoch.
///
/// The key is (seed low, seed high), the counter (index div 4, sample, epoch, stream); word index mod 4 is the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    /// The run's seed.
    pub seed: u64,
    /// The epoch, from 0.
    pub epoch: u32,
    /// The sample's number in the data set.
    pub sample: u32,
    /// What the numbers are for.
    pub stream: Stream,
}

impl Noise {
    /// The random word of an index.
    #[inline]
    pub fn bits(&self, index: u32) -> u32 {
        let [a, b, c, d] = self.block(index / 4);
        match index % 4 {
            0 => a,
            1 => b,
            2 => c,
            _ => d,
        }
    }

    /// The uniform value of an index: a multiple of 2⁻²⁴ in [0, 1).
    #[inline]
    pub fn uniform(&self, index: u32) -> f32 {
        unit(self.bits(index))
    }

    /// Writes the uniform values of indices 0, 1, 2, …
    pub fn fill(&self, out: &mut [f32]) {
        for (block, values) in (0u32..).zip(out.chunks_mut(4)) {
            for (value, word) in values.iter_mut().zip(self.block(block)) {
                *value = unit(word);
            }
        }
    }

    #[inline(always)]
    fn block(&self, number: u32) -> [u32; 4] {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        philox4x32_10([number, self.sample, self.epoch, self.stream as u32], key)
    }
}

/// The upper 24 bits as a fraction: exact, and never 1.
#[inline(always)]
fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Random123's published known answers for ten rounds.
    #[test]
    fn known_answers() {
        let ones = u32::MAX;
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            (
                [ones; 4],
                [ones; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    #[test]
    fn noise_of_zero_is_the_known_answer() {
        let noise = Noise {
            seed: 0,
            epoch: 0,
            sample: 0,
            stream: Stream::Mask,
        };
        assert_eq!(noise.bits(2), 0xbc57_ac4c);
        assert_eq!(noise.uniform(0), 0x66_27e8 as f32 / 16_777_216.0);
        let pi = Noise {
            seed: 0x299f_31d0_a409_3822,
            epoch: 2,
            sample: 1,
            stream: Stream::Init,
        };
        assert_eq!(pi.bits(7), philox4x32_10([1, 1, 2, 3], [0xa409_3822, 0x299f_31d0])[3]);
    }

    #[test]
    fn uniform_is_below_one() {
        assert_eq!(unit(0), 0.0);
        assert_eq!(unit(u32::MAX), 1.0 - 1.0 / 16_777_216.0);
    }

    proptest! {
        #[test]
        fn fill_equals_uniform(seed: u64, epoch: u32, sample: u32, length in 0usize..40) {
            let noise = Noise { seed, epoch, sample, stream: Stream::Augment };
            let mut out = [2.0f32; 40];
            noise.fill(&mut out[..length]);
            for (index, &value) in (0u32..).zip(&out[..length]) {
                prop_assert_eq!(value, noise.uniform(index));
                prop_assert!((0.0..1.0).contains(&value));
            }
        }
    }
}
