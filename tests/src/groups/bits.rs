//! f32 operations on inputs made here, awkward ones among them: the same bits as the host's.
//!
//! The inputs are Philox noise, so they are the same everywhere and need no file.

use tec_core::philox::{Noise, Stream};
use tec_device::Operation;

use super::Session;
use crate::error::Result;
use crate::tensor::Data;

/// Row lengths: tails of every length beside eight lanes, and some that models have.
const LENGTHS: [usize; 22] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 49, 64, 196, 257, 384,
];

/// Kinds of values.
#[derive(Debug, Clone, Copy)]
enum Values {
    /// As activations are: between −4 and 4.
    Usual,
    /// Of every magnitude that squares do not overflow.
    Wide,
    /// Any bits: infinities, NaN, subnormal numbers.
    Any,
}

const KINDS: [Values; 3] = [Values::Usual, Values::Wide, Values::Any];

/// A source of inputs.
struct Inputs(Noise);

impl Inputs {
    fn new(case: u32) -> Self {
        Self(Noise {
            seed: 0x7EC,
            epoch: 0,
            sample: case,
            stream: Stream::Augment,
        })
    }

    fn next(&mut self, len: usize, kind: Values) -> Data {
        self.0.epoch += 1;
        let noise = self.0;
        let value = |index: u32| match kind {
            Values::Usual => noise.uniform(index) * 8.0 - 4.0,
            // The exponent between 2^-40 and 2^39.
            Values::Wide => {
                let bits = noise.bits(index);
                f32::from_bits(bits & 0x807F_FFFF | ((bits >> 23 & 0xFF) % 80 + 87) << 23)
            }
            Values::Any => f32::from_bits(noise.bits(index)),
        };
        Data::from((0..len as u32).map(value).collect::<Vec<_>>())
    }
}

pub(super) fn check(session: &mut Session<'_>) -> Result<()> {
    let mut number = 0;
    let mut run = |operation: Operation, arguments: Vec<Data>, what: &str| {
        session.compare(&format!("{} {number}, {what}", operation.name()), operation, &arguments);
        number += 1;
    };
    let size = |values: &[usize]| Data::from(values.iter().map(|&v| v as u32).collect::<Vec<_>>());
    let one = |value: f32| Data::from(vec![value]);
    for (case, len) in LENGTHS.into_iter().enumerate() {
        for kind in KINDS {
            let mut inputs = Inputs::new(case as u32);
            let mut next = |len| inputs.next(len, kind);
            let what = format!("{kind:?}, {len} wide");
            let rows = 3;
            run(Operation::Gelu, vec![next(len), next(len)], &what);
            run(
                Operation::Softmax,
                vec![next(rows * len), size(&[len]), one(0.7), next(rows * len)],
                &what,
            );
            let norm = vec![next(rows * len), next(len), next(len), one(1e-6), next(rows * len)];
            run(Operation::LayerNorm, norm, &what);
            run(
                Operation::Linear,
                vec![next(rows * len), size(&[len]), next(5 * len), next(5), next(rows * 5)],
                &what,
            );
            run(
                Operation::NormalizeFeatures,
                vec![next(rows * len), size(&[rows, len])],
                &what,
            );
            run(
                Operation::TemperedTarget,
                vec![next(rows * len), size(&[len]), one(1.8)],
                &what,
            );
            run(
                Operation::RelationLoss,
                vec![next(rows * len), next(rows * len), size(&[len]), one(0.1)],
                &what,
            );
            let removed = Data::from(vec![1.0f32, 0.0, 1.0]);
            let loss = vec![next(rows * len), next(rows * len), removed, size(&[len]), one(0.5)];
            run(Operation::FeatureLoss, loss, &what);
            // Noise of any bits may hold a NaN: then both must refuse it.
            run(Operation::Mask, vec![next(len), size(&[len.div_ceil(4)])], &what);
            run(
                Operation::RankQueries,
                vec![next(rows * len), size(&[rows, len, len.min(9)])],
                &what,
            );
            // Its weights grow with the square, and may have to come over a serial port.
            if len <= 64 {
                let mlp = vec![
                    next(len),
                    next(2 * len * len),
                    next(2 * len),
                    next(2 * len * len),
                    next(len),
                ];
                run(Operation::InputAdapter, mlp, &what);
            }
        }
    }
    for (from, to) in [(1, 3), (4, 7), (16, 14), (14, 4), (5, 5)] {
        for antialias in [0, 1] {
            let table = Inputs::new(1000).next(from * from * 6, Values::Usual);
            let what = format!("{from} to {to}");
            run(Operation::Resize, vec![table, size(&[from, to, 6, antialias])], &what);
        }
    }
    for (dim, grid) in [(4, 1), (8, 3), (64, 7), (384, 16)] {
        run(Operation::SinCos, vec![size(&[dim, grid])], &format!("{dim}x{grid}"));
    }
    for (seed, stream) in [(0u64, 0), (1, 1), (u64::MAX, 2), (0x0123_4567_89AB_CDEF, 3)] {
        run(
            Operation::Noise,
            vec![Data::from(vec![seed]), size(&[7, 11, stream, 97])],
            "words",
        );
    }
    // What must be refused, with the same words everywhere.
    run(
        Operation::Mask,
        vec![Data::from(vec![0.5f32, f32::NAN]), size(&[1])],
        "NaN noise",
    );
    run(
        Operation::Mask,
        vec![Data::from(vec![0.5f32, 0.1]), size(&[0])],
        "nothing kept",
    );
    run(
        Operation::RankQueries,
        vec![Data::from(vec![0.5f32, 0.1]), size(&[1, 2, 3])],
        "too many queries",
    );
    run(
        Operation::Kept,
        vec![Data::from(vec![1.5f64]), size(&[16])],
        "a ratio above one",
    );
    Ok(())
}
