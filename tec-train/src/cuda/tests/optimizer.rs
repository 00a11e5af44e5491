use candle_core::Var;

use super::super::{Float, optimizer as plan};
use super::*;
use crate::optim::{AdamW, AdamWConfig};

const CONFIG: AdamWConfig = AdamWConfig {
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.05,
};

/// Parameters in the emulator's memory with the tables of them.
struct Device {
    tensors: [Vec<Tensor>; 4],
    tables: plan::Tables,
    /// The values as bf16, of every other tensor.
    rounded: Vec<Option<Buffer<u16>>>,
    /// What the tables' addresses are of.
    _tables: (Vec<Buffer<u64>>, Vec<Buffer<u32>>),
    chunks: usize,
}

impl Device {
    fn new(parameters: &[Vec<f32>], gradients: &[Vec<f32>], decays: &[bool]) -> Self {
        let lengths: Vec<usize> = parameters.iter().map(Vec::len).collect();
        let of = |values: &[Vec<f32>]| values.iter().map(|v| Tensor::new(Float::F32, v, 1)).collect::<Vec<_>>();
        let zeros: Vec<Vec<f32>> = lengths.iter().map(|&n| vec![0.0; n]).collect();
        let tensors = [of(parameters), of(gradients), of(&zeros), of(&zeros)];
        let mut wide: Vec<Buffer<u64>> = tensors
            .iter()
            .map(|list| Buffer::new(&list.iter().map(Tensor::at).collect::<Vec<_>>()))
            .collect();
        wide.push(Buffer::new(&lengths.iter().map(|&n| n as u64).collect::<Vec<_>>()));
        let rounded: Vec<Option<Buffer<u16>>> = lengths
            .iter()
            .enumerate()
            .map(|(number, &length)| (number % 2 == 0).then(|| Buffer::poisoned(length)))
            .collect();
        let copies = rounded
            .iter()
            .map(|copy| copy.as_ref().map_or(0, |copy| copy.address(0)));
        wide.push(Buffer::new(&copies.collect::<Vec<u64>>()));
        let chunks = plan::chunks(&lengths);
        let flags: Vec<u32> = decays.iter().map(|&decays| decays.into()).collect();
        let narrow = vec![Buffer::new(&flags), Buffer::new(chunks.as_flattened())];
        let tables = plan::Tables {
            parameters: wide[0].address(0),
            gradients: wide[1].address(0),
            firsts: wide[2].address(0),
            seconds: wide[3].address(0),
            lengths: wide[4].address(0),
            rounded: wide[5].address(0),
            decays: narrow[0].address(0),
            chunks: narrow[1].address(0),
            count: chunks.len(),
        };
        Self {
            tensors,
            tables,
            rounded,
            _tables: (wide, narrow),
            chunks: chunks.len(),
        }
    }

    /// The norm of the gradients of some losses, where it lies too.
    fn norm(&self, losses: &[f32]) -> (f64, Buffer<f64>) {
        let there = Buffer::new(losses);
        let (scratch, norm) = (Buffer::<f64>::poisoned(self.chunks), Buffer::<f64>::poisoned(1));
        let launches = plan::gradient_norm(
            &self.tables,
            (there.address(0), losses.len()),
            scratch.address(0),
            norm.address(0),
        );
        launches.iter().for_each(run);
        let first = norm.values()[0];
        run_backwards(true);
        launches.iter().for_each(run);
        run_backwards(false);
        assert_eq!(first.to_bits(), norm.values()[0].to_bits());
        scratch.values();
        (first, norm)
    }

    fn bits(&self, which: usize) -> Vec<Vec<u32>> {
        self.tensors[which]
            .iter()
            .map(|tensor| bits(&tensor.values()))
            .collect()
    }
}

#[test]
fn steps_have_the_hosts_bits() {
    // More than one chunk, a whole one, one element, one of no axes' worth.
    let shapes: [(&str, Vec<usize>); 5] = [
        ("w", vec![170, 100]),
        ("whole", vec![2, 8192]),
        ("b", vec![1]),
        ("odd.bias", vec![3, 5]),
        ("long", vec![33_000]),
    ];
    let decays = [true, true, false, false, false];
    let start: Vec<Vec<f32>> = shapes
        .iter()
        .zip(1..)
        .map(|((_, s), seed)| values(seed, s.iter().product()))
        .collect();
    let grads: Vec<Vec<f32>> = start.iter().zip(11..).map(|(v, seed)| values(seed, v.len())).collect();
    for clip in [None, Some(0.5), Some(1e9)] {
        let vars: Vec<(String, Var)> = shapes
            .iter()
            .zip(&start)
            .map(|((name, shape), values)| ((*name).into(), Var::from_tensor(&cpu(values, shape.clone())).unwrap()))
            .collect();
        let mut host = AdamW::new(&vars, CONFIG);
        let device = Device::new(&start, &grads, &decays);
        for step in 1..=3 {
            let lr = 0.01 * f64::from(step);
            // The gradient of Σ x · c is c.
            let terms = vars.iter().zip(&grads).map(|((_, x), grad)| {
                let grad = cpu(grad, x.dims());
                (x.as_tensor() * grad).unwrap().sum_all().unwrap()
            });
            let loss = terms.reduce(|a, b| (a + b).unwrap()).unwrap();
            let expected = host.step(&loss.backward().unwrap(), lr, clip).unwrap();
            let (norm, at) = device.norm(&[0.5, -3.0, 1e30][..step as usize]);
            assert!((norm - expected).abs() <= 1e-12 * expected, "{norm} {expected}");
            let correction = |beta: f64| 1.0 - beta.powi(step);
            let update = plan::Update {
                beta1: 0.9,
                beta2: 0.95,
                decay: (1.0 - lr * 0.05) as f32,
                step_size: (lr / correction(0.9)) as f32,
                correction: correction(0.95).sqrt() as f32,
                eps: 1e-8,
            };
            let clip = clip.unwrap_or(f64::INFINITY);
            run(&plan::adamw(&device.tables, at.address(0), clip, &update));
        }
        let parameters: Vec<Vec<u32>> = vars.iter().map(|(_, var)| bits(&flat(var))).collect();
        for (copy, values) in device.rounded.iter().zip(&parameters) {
            if let Some(copy) = copy {
                let nearest = |bits: &u32| bf16::from_f32(f32::from_bits(*bits)).to_bits();
                assert_eq!(copy.values(), values.iter().map(nearest).collect::<Vec<_>>());
            }
        }
        let moments: Vec<_> = host.moments().unwrap();
        assert_eq!(device.bits(0), parameters, "{clip:?}");
        assert_eq!(
            device.bits(2),
            moments.iter().map(|m| bits(&m.first)).collect::<Vec<_>>()
        );
        assert_eq!(
            device.bits(3),
            moments.iter().map(|m| bits(&m.second)).collect::<Vec<_>>()
        );
    }
}

#[test]
fn a_norm_that_is_not_finite_changes_nothing() {
    let start = vec![values(1, 40), values(2, 3)];
    for (bad, among_losses) in [
        (f32::NAN, false),
        (f32::INFINITY, false),
        (f32::NAN, true),
        (f32::NEG_INFINITY, true),
    ] {
        let mut grads = vec![values(3, 40), values(4, 3)];
        let mut losses = [1.0; 300];
        match among_losses {
            true => losses[299] = bad,
            false => grads[1][2] = bad,
        }
        let device = Device::new(&start, &grads, &[true, false]);
        let (norm, at) = device.norm(&losses);
        assert!(!norm.is_finite());
        assert!(norm.is_nan() || !among_losses);
        let update = plan::Update {
            beta1: 0.9,
            beta2: 0.95,
            decay: 0.99,
            step_size: 0.1,
            correction: 0.5,
            eps: 1e-8,
        };
        run(&plan::adamw(&device.tables, at.address(0), 1.0, &update));
        let expected: Vec<Vec<u32>> = start.iter().map(|v| bits(v)).collect();
        assert_eq!(device.bits(0), expected);
        assert!(device.bits(2).concat().iter().all(|&v| v == 0));
    }
}
