//! Every operation of `tec-core` with arguments that mostly fit together, and what must hold of the results.

use tec_core::adapter::groups;
use tec_core::integer::{WEIGHT_MAX, gelu_table, norm_affine, round_shift, scale};
use tec_core::{Error, activation, lanes, loss, mask, philox};
use tec_device::{Operation, Status};

use crate::encoder::{file, headers};
use crate::input::Source;
use crate::request::{Answer, Request, ask};

/// Memory of the device that computes.
const CAPACITY: usize = 48 << 10;

/// One operation that `source` chooses, on a device.
///
/// # Panics
/// Where something does not hold of the results.
pub fn run(source: &mut Source<'_>) {
    // At times so little memory that some result does not fit.
    let capacity = if source.one_in(8) {
        source.below(CAPACITY)
    } else {
        CAPACITY
    };
    let choice = source.below(Operation::ALL.len() + 1);
    match Operation::ALL.get(choice) {
        Some(&operation) => call(operation, source, &mut |request| {
            ask(&request.payload, capacity).filter(|answer| answer.status == Status::Done)
        }),
        None => direct(source),
    }
}

/// Asks a device; gives the answer if it computed something.
pub type Ask<'f> = &'f mut dyn FnMut(&Request) -> Option<Answer>;

/// Builds a request for this operation, asks, and checks the results if it was computed.
///
/// # Panics
/// Where something does not hold of the results.
pub fn call(operation: Operation, source: &mut Source<'_>, ask: Ask<'_>) {
    let request = Request::new(operation);
    match operation {
        Operation::Noise => noise(request, source, ask),
        Operation::Kept => kept(request, source, ask),
        Operation::Mask => masking(request, source, ask),
        Operation::SinCos => sincos(request, source, ask),
        Operation::Resize => resize(request, source, ask),
        Operation::NormalizeFeatures => normalize_features(request, source, ask),
        Operation::RankQueries => rank_queries(request, source, ask),
        Operation::TargetRows => target_rows(request, source, ask),
        Operation::TemperedTarget => tempered_target(request, source, ask),
        Operation::FeatureLoss => feature_loss(request, source, ask),
        Operation::RelationLoss => relation_loss(request, source, ask),
        Operation::InputAdapter => input_adapter(request, source, ask),
        Operation::EncoderAdapter => encoder_adapter(request, source, ask),
        Operation::LayerNorm => layer_norm(request, source, ask),
        Operation::Softmax => softmax(request, source, ask),
        Operation::Gelu => gelu(request, source, ask),
        Operation::Linear => linear(request, source, ask),
        Operation::IntegerRound => integer_round(request, source, ask),
        Operation::IntegerScale => integer_scale(request, source, ask),
        Operation::IntegerSqrt => integer_sqrt(request, source, ask),
        Operation::IntegerReciprocal => integer_reciprocal(request, source, ask),
        Operation::IntegerLinear => integer_linear(request, source, ask),
        Operation::IntegerNorm => integer_norm(request, source, ask),
        Operation::IntegerSoftmax => integer_softmax(request, source, ask),
        Operation::IntegerGelu => integer_gelu(request, source, ask),
        Operation::IntegerPixel => integer_pixel(request, source, ask),
        Operation::IntegerInt4 => integer_int4(request, source, ask),
        Operation::Encode | Operation::Trace => encode(request, source, ask),
    }
}

fn product(sizes: &[usize]) -> usize {
    sizes
        .iter()
        .fold(1, |product: usize, &size| product.saturating_mul(size))
}

/// Whether every value is so small that no sum of some hundred products overflows.
fn moderate(values: &[f32]) -> bool {
    values.iter().all(|x| x.abs() <= 1e4)
}

fn assert_finite(values: &[f32]) {
    assert!(values.iter().all(|x| x.is_finite()), "not finite: {values:?}");
}

fn assert_permutation(order: &[u32]) {
    let mut seen = vec![false; order.len()];
    for &place in order {
        assert!(
            !std::mem::replace(&mut seen[place as usize], true),
            "{place} twice in {order:?}"
        );
    }
}

/// A row is a distribution.
fn assert_distribution(row: &[f32]) {
    assert!(row.iter().all(|p| (0.0..=1.0 + 1e-5).contains(p)), "{row:?}");
    // Each value and the sum are off by some parts in 2^24 each; rows have at most 600 values.
    let sum: f64 = row.iter().map(|&p| f64::from(p)).sum();
    assert!((sum - 1.0).abs() < 1e-4, "a sum of {sum}: {row:?}");
}

fn noise(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let seed = source.long();
    let place = [source.word(), source.word(), u32::from(source.byte() % 5)];
    let count = if source.one_in(16) {
        source.extreme()
    } else {
        source.below(400) as u32
    };
    let numbers = [place[0], place[1], place[2], count];
    let Some(answer) = ask(&request.tensor(&[seed]).tensor(&numbers)) else {
        return;
    };
    let mut results = answer.results();
    let (words, uniform) = (results.take::<u32>().unwrap(), results.take::<f32>().unwrap());
    assert_eq!((words.len(), uniform.len()), (count as usize, count as usize));
    for (&word, &value) in words.iter().zip(uniform) {
        assert_eq!(f64::from(value), f64::from(word >> 8) / 2f64.powi(24));
    }
}

fn kept(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let ratio = match source.byte() % 4 {
        0 => f64::from_bits(source.long()),
        _ => f64::from(source.byte()) / 256.0,
    };
    let patches = if source.one_in(8) {
        source.extreme() as usize
    } else {
        source.below(300)
    };
    let Some(answer) = ask(&request.tensor(&[ratio]).sizes([patches])) else {
        return;
    };
    let keep = answer.results().take::<u32>().unwrap()[0] as usize;
    assert!((1..=patches).contains(&keep), "{keep} of {patches}");
}

fn masking(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let patches = source.below(70);
    let noise = source.floats(patches);
    let keep = if source.one_in(16) {
        source.extreme() as usize
    } else {
        source.below(noise.len() + 1)
    };
    let Some(answer) = ask(&request.tensor(&noise).sizes([keep])) else {
        return;
    };
    let mut results = answer.results();
    let (order, restore) = (results.take::<u32>().unwrap(), results.take::<u32>().unwrap());
    let removed = results.take::<f32>().unwrap();
    assert_permutation(order);
    assert_permutation(restore);
    for (place, &patch) in order.iter().enumerate() {
        assert_eq!(restore[patch as usize] as usize, place);
        assert_eq!(removed[patch as usize], if place < keep { 0.0 } else { 1.0 });
    }
    for pair in order.windows(2) {
        let (a, b) = (noise[pair[0] as usize], noise[pair[1] as usize]);
        assert!(a < b || (a == b && pair[0] < pair[1]));
    }
}

fn sincos(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let dim = if source.one_in(16) {
        source.size()
    } else {
        4 * source.below(8)
    };
    let grid = source.size();
    let Some(answer) = ask(&request.sizes([dim, grid])) else {
        return;
    };
    let mut results = answer.results();
    let table = results.take::<f32>().unwrap();
    assert!(table.iter().all(|x| x.abs() <= 1.0 + 1e-6));
    assert!(table[..dim].iter().all(|&x| x == 0.0));
}

fn resize(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let (from, to, dim) = (source.size(), source.size(), source.size());
    let table = source.floats(product(&[from, from, dim]));
    let sizes = [from, to, dim, source.below(2)];
    let Some(answer) = ask(&request.tensor(&table).sizes(sizes)) else {
        return;
    };
    let mut results = answer.results();
    let out = results.take::<f32>().unwrap();
    assert_eq!(out.len(), product(&[to, to, dim]));
    if moderate(&table) {
        assert_finite(out);
    }
}

fn normalize_features(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let (patches, width) = (source.size(), source.size());
    let features = source.floats(product(&[patches, width]));
    let Some(answer) = ask(&request.tensor(&features).sizes([patches, width])) else {
        return;
    };
    if moderate(&features) {
        assert_finite(answer.results().take().unwrap());
    }
}

fn rank_queries(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let (heads, patches, queries) = (source.size(), source.size(), source.size());
    let logits = source.floats(product(&[heads, patches]));
    let Some(answer) = ask(&request.tensor(&logits).sizes([heads, patches, queries])) else {
        return;
    };
    let mut index = answer.results().take::<u32>().unwrap().to_vec();
    assert_eq!(index.len(), queries);
    index.sort_unstable();
    assert!(index.windows(2).all(|pair| pair[0] < pair[1]), "twice the same query");
    assert!(index.iter().all(|&patch| (patch as usize) < patches));
}

fn target_rows(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let (heads, patches) = (source.size(), source.size());
    let tokens = patches.saturating_add(1);
    let logits = source.floats(product(&[heads, tokens, tokens]));
    let index: Vec<u32> = (0..source.below(6))
        .map(|_| {
            if source.one_in(32) {
                source.extreme()
            } else {
                source.below(patches) as u32
            }
        })
        .collect();
    let Some(answer) = ask(&request.tensor(&logits).sizes([heads, patches]).tensor(&index)) else {
        return;
    };
    let mut results = answer.results();
    let picked = results.take::<f32>().unwrap();
    assert_eq!(picked.len(), product(&[index.len() + 1, heads, patches]));
    for value in picked {
        assert!(logits.iter().any(|logit| logit.to_bits() == value.to_bits()));
    }
}

fn tempered_target(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let (rows, patches) = (source.size(), source.size());
    let picked = source.floats(product(&[rows, patches]));
    let temperature = source.float();
    let Some(answer) = ask(&request.tensor(&picked).sizes([patches]).tensor(&[temperature])) else {
        return;
    };
    if moderate(&picked) && (1e-3..1e3).contains(&temperature) {
        let mut results = answer.results();
        results
            .take::<f32>()
            .unwrap()
            .chunks_exact(patches.max(1))
            .for_each(assert_distribution);
    }
}

fn feature_loss(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let (patches, width) = (source.size(), source.size());
    let len = product(&[patches, width]);
    let (prediction, target) = (source.floats(len), source.floats(len));
    let removed: Vec<f32> = match source.one_in(8) {
        true => source.floats(patches),
        false => (0..source.len(patches)).map(|_| f32::from(source.byte() % 2)).collect(),
    };
    let scale = source.float();
    let values = request.tensor(&prediction).tensor(&target).tensor(&removed);
    let Some(answer) = ask(&values.sizes([width]).tensor(&[scale])) else {
        return;
    };
    let mut results = answer.results();
    let (sums, gradient) = (results.take::<f32>().unwrap(), results.take::<f32>().unwrap());
    assert_eq!((sums.len(), gradient.len()), (2, prediction.len()));
    if moderate(&prediction) && moderate(&target) && moderate(&removed) && moderate(&[scale]) {
        assert_finite(sums);
        assert_finite(gradient);
    }
}

fn relation_loss(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let (rows, patches) = (source.size(), source.size());
    let len = product(&[rows, patches]);
    let (prediction, target) = (source.floats(len), source.floats(len));
    let scale = source.float();
    let values = request.tensor(&prediction).tensor(&target);
    let Some(answer) = ask(&values.sizes([patches]).tensor(&[scale])) else {
        return;
    };
    if moderate(&prediction) && moderate(&target) && moderate(&[scale]) {
        let mut results = answer.results();
        assert_finite(results.take().unwrap());
        assert_finite(results.take().unwrap());
    }
}

/// Weights and biases of an MLP's two layers.
fn mlp(mut request: Request, source: &mut Source<'_>, width: usize, hidden: usize) -> (Request, bool) {
    let mut all_moderate = true;
    for len in [hidden * width, hidden, width * hidden, width] {
        let values = source.floats(len);
        all_moderate &= values.iter().all(|x| x.abs() <= 10.0);
        request = request.tensor(&values);
    }
    (request, all_moderate)
}

fn input_adapter(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let (width, hidden) = (source.below(10), source.below(10));
    let token = source.floats(width);
    let (request, mild) = mlp(request.tensor(&token), source, width, hidden);
    let Some(answer) = ask(&request) else { return };
    if mild && moderate(&token) {
        assert_finite(answer.results().take().unwrap());
    }
}

fn encoder_adapter(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let (rows, width, hidden) = (source.below(3), source.below(5), source.below(5));
    let (count, depth) = (source.below(18), source.below(4));
    let joined = width * depth * count;
    let mut request = request.tensor(&source.floats(rows * joined));
    for len in [joined, joined, width, width] {
        request = request.tensor(&source.floats(len));
    }
    for _ in 0..count {
        let (weight, bias) = (source.floats(width * width * depth), source.floats(width));
        request = mlp(request.tensor(&weight).tensor(&bias), source, width, hidden).0;
    }
    ask(&request);
}

fn layer_norm(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let (rows, width) = (source.below(4), source.below(40));
    let x = source.floats(rows * width);
    let (weight, bias) = (source.floats(width), source.floats(width));
    let epsilon = if source.one_in(8) { source.float() } else { 1e-6 };
    let gradient = source.floats(rows * width);
    let values = request.tensor(&x).tensor(&weight).tensor(&bias);
    let Some(answer) = ask(&values.tensor(&[epsilon]).tensor(&gradient)) else {
        return;
    };
    if [&x, &weight, &bias, &gradient]
        .into_iter()
        .all(|values| moderate(values))
        && epsilon >= 1e-6
    {
        let mut results = answer.results();
        while !results.is_empty() {
            assert_finite(results.take().unwrap());
        }
    }
}

fn softmax(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let (rows, width) = (source.below(4), source.size());
    let len = product(&[rows, width]);
    let (x, scale, gradient) = (source.floats(len), source.float(), source.floats(len));
    let values = request.tensor(&x).sizes([width]).tensor(&[scale]);
    let Some(answer) = ask(&values.tensor(&gradient)) else {
        return;
    };
    let mut results = answer.results();
    let (out, grad_x) = (results.take::<f32>().unwrap(), results.take::<f32>().unwrap());
    let log_sums = results.take::<f32>().unwrap();
    let width = width.max(1);
    // As many rows as the gradient has are computed.
    let rows = x.chunks_exact(width).zip(out.chunks_exact(width)).zip(log_sums);
    for ((x, out), &log_sum) in rows.take(gradient.len() / width) {
        if x.iter().all(|x| (x * scale).is_finite()) {
            assert_distribution(out);
            assert!(log_sum.is_finite());
        }
    }
    if moderate(&x) && moderate(&gradient) && moderate(&[scale]) {
        assert_finite(grad_x);
    }
}

fn gelu(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let count = source.below(40);
    let (x, gradient) = (source.floats(count), source.floats(count));
    let Some(answer) = ask(&request.tensor(&x).tensor(&gradient)) else {
        return;
    };
    let mut results = answer.results();
    let [y, _, exp, erf] = std::array::from_fn(|_| results.take::<f32>().unwrap());
    for (((&x, &y), &exp), &erf) in x.iter().zip(y).zip(exp).zip(erf) {
        if !x.is_nan() {
            assert!(exp >= 0.0 && (-1.0..=1.0).contains(&erf), "exp {exp}, erf {erf} of {x}");
        }
        if x.is_finite() {
            assert!(y.is_finite() && y >= -0.2 && y <= x.max(0.0), "GELU {y} of {x}");
        }
    }
}

fn linear(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let (rows, width, outputs) = (source.below(5), source.size(), source.size());
    let x = source.floats(product(&[rows, width]));
    let (weight, bias) = (source.floats(product(&[outputs, width])), source.floats(outputs));
    let gradient = source.floats(product(&[rows, outputs]));
    let values = request.tensor(&x).sizes([width]).tensor(&weight).tensor(&bias);
    let Some(answer) = ask(&values.tensor(&gradient)) else {
        return;
    };
    let mut results = answer.results();
    let out = results.take::<f32>().unwrap();
    for values in [&x, &weight, &bias] {
        assert_eq!(results.take::<f32>().unwrap().len(), values.len());
    }
    if [&x, &weight, &bias].into_iter().all(|values| moderate(values)) {
        assert_finite(out);
        for (x, out) in x.chunks_exact(width.max(1)).zip(out.chunks_exact(bias.len().max(1))) {
            for ((weight, &bias), &out) in weight.chunks_exact(width.max(1)).zip(&bias).zip(out) {
                // Half a step of the smallest numbers for each product.
                const SUBNORMALS: f64 = 1e-42;
                let products = x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * f64::from(w));
                let size = products.clone().map(f64::abs).sum::<f64>() + f64::from(bias.abs());
                let exact = products.sum::<f64>() + f64::from(bias);
                assert!(
                    (exact - f64::from(out)).abs() <= 1e-5 * size + SUBNORMALS,
                    "{out} for {exact}"
                );
            }
        }
    }
}

fn integer_round(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let count = source.below(20);
    let products: Vec<i64> = (0..count)
        .map(|_| source.long() as i64 >> (source.byte() % 64))
        .collect();
    let shifts: Vec<u32> = (0..source.len(count)).map(|_| shift(source)).collect();
    let Some(answer) = ask(&request.tensor(&products).tensor(&shifts)) else {
        return;
    };
    let mut results = answer.results();
    for ((&got, &product), &shift) in results.take::<i64>().unwrap().iter().zip(&products).zip(&shifts) {
        let half = if shift == 0 { 0 } else { 1i128 << (shift - 1).min(100) };
        let expected = if shift > 100 {
            0
        } else {
            (i128::from(product) + half) >> shift
        };
        assert_eq!(i128::from(got), expected, "{product} by {shift}");
    }
}

fn shift(source: &mut Source<'_>) -> u32 {
    if source.one_in(32) {
        source.extreme()
    } else {
        u32::from(source.byte() % 64)
    }
}

fn integer_scale(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let count = source.below(20);
    let (values, multipliers) = (source.i32s(count), source.i32s(count));
    let shifts: Vec<u32> = (0..source.len(count)).map(|_| shift(source)).collect();
    let Some(answer) = ask(&request.tensor(&values).tensor(&multipliers).tensor(&shifts)) else {
        return;
    };
    let mut results = answer.results();
    let wide = results.take::<i64>().unwrap();
    let (bytes, words) = (results.take::<i8>().unwrap(), results.take::<i16>().unwrap());
    for ((&wide, &byte), &word) in wide.iter().zip(bytes).zip(words) {
        assert_eq!(i64::from(byte), wide.clamp(-128, 127));
        assert_eq!(i64::from(word), wide.clamp(-32768, 32767));
    }
}

fn integer_sqrt(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let values: Vec<u64> = (0..source.below(20))
        .map(|_| source.long() >> (source.byte() % 64))
        .collect();
    let Some(answer) = ask(&request.tensor(&values)) else {
        return;
    };
    for (&root, &value) in answer.results().take::<u32>().unwrap().iter().zip(&values) {
        let (root, value) = (u128::from(root), u128::from(value));
        assert!(
            root * root <= value && value < (root + 1) * (root + 1),
            "{root} of {value}"
        );
    }
}

fn integer_reciprocal(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let divisors: Vec<u32> = (0..source.below(20)).map(|_| source.extreme()).collect();
    let Some(answer) = ask(&request.tensor(&divisors)) else {
        return;
    };
    let mut results = answer.results();
    let (mantissas, shifts) = (results.take::<i64>().unwrap(), results.take::<u32>().unwrap());
    for ((&mantissa, &shift), &divisor) in mantissas.iter().zip(shifts).zip(&divisors) {
        let divisor = i128::from(divisor.max(1));
        let error = i128::from(mantissa) * divisor - (1i128 << shift);
        assert!(2 * error.abs() <= divisor, "{mantissa}, {shift} for {divisor}");
    }
}

fn integer_linear(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let (tokens, inner, outputs) = (source.below(10), source.size(), source.size());
    let x = source.i8s(product(&[tokens, inner]));
    let weight = source.i8s(product(&[outputs, inner]));
    let (bias, multiplier) = (source.i32s(outputs), source.i32s(outputs));
    let shift = shift(source);
    let values = request.tensor(&x).tensor(&weight).tensor(&bias).tensor(&multiplier);
    let Some(answer) = ask(&values.sizes([shift as usize, inner])) else {
        return;
    };
    let mut results = answer.results();
    let (narrow, wide) = (results.take::<i8>().unwrap(), results.take::<i16>().unwrap());
    if inner == 0 || multiplier.len() != bias.len() || weight.len() != product(&[bias.len(), inner]) {
        return;
    }
    let rows = x.chunks_exact(inner);
    let results = narrow
        .chunks_exact(bias.len().max(1))
        .zip(wide.chunks_exact(bias.len().max(1)));
    for (x, (narrow, wide)) in rows.zip(results) {
        for (output, row) in weight.chunks_exact(inner).enumerate() {
            let sum: i32 = x.iter().zip(row).map(|(&x, &w)| i32::from(x) * i32::from(w)).sum();
            let value = scale(sum.wrapping_add(bias[output]), multiplier[output], shift);
            assert_eq!(i64::from(narrow[output]), value.clamp(-128, 127));
            assert_eq!(i64::from(wide[output]), value.clamp(-32768, 32767));
        }
    }
}

fn integer_norm(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let (rows, dim) = (source.below(5), source.below(40));
    let narrow = u32::from(source.byte() % 16);
    let tokens: Vec<i16> = (0..source.len(rows * dim))
        .map(|_| i16::from_le_bytes(source.bytes()) >> narrow)
        .collect();
    let epsilon = source.long() >> (source.byte() % 64);
    let (multiplier, offset) = (source.i32s(dim), source.i32s(dim));
    let bits = if source.one_in(16) {
        source.extreme()
    } else {
        u32::from(16 + source.byte() % 30)
    };
    let values = request.tensor(&tokens).tensor(&[epsilon]);
    let values = values.tensor(&multiplier).tensor(&offset).sizes([bits as usize]);
    let Some(answer) = ask(&values) else { return };
    let mut results = answer.results();
    let (normalized, affine) = (results.take::<i32>().unwrap(), results.take::<i64>().unwrap());
    if offset.len() != multiplier.len() || multiplier.is_empty() {
        return;
    }
    let (dim, bits) = (multiplier.len(), bits.min(200));
    for (normalized, affine) in normalized.chunks_exact(dim).zip(affine.chunks_exact(dim)) {
        for (i, (&normalized, &affine)) in normalized.iter().zip(affine).enumerate() {
            assert_eq!(affine, norm_affine(normalized, multiplier[i], offset[i], bits));
            // |x - mean| / sqrt(variance + epsilon) is at most sqrt(D), and the root is rounded down.
            let most = (dim as f64).sqrt() * f64::from(1u32 << 20) * 1.001 + 1.0;
            assert!(
                epsilon == 0 || f64::from(normalized).abs() <= most,
                "{normalized}, {dim} values"
            );
        }
    }
}

fn integer_softmax(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let (rows, count, width) = (source.below(5), source.size(), source.size());
    let scores = source.i32s(product(&[rows, count]));
    let multiplier = source.extreme() as i32;
    let (inner, outer) = (shift(source), shift(source));
    let (values, multipliers) = (source.i8s(product(&[width, count])), source.i32s(width));
    let arguments = request.tensor(&scores).tensor(&[multiplier]).sizes([inner as usize]);
    let arguments = arguments.tensor(&values).tensor(&multipliers);
    let Some(answer) = ask(&arguments.sizes([outer as usize, count])) else {
        return;
    };
    let mut results = answer.results();
    let (weights, sums) = (results.take::<i16>().unwrap(), results.take::<u32>().unwrap());
    assert!(weights.iter().all(|weight| (0..=WEIGHT_MAX).contains(weight)));
    for (row, &sum) in weights.chunks_exact(count.max(1)).zip(sums) {
        assert_eq!(row.iter().map(|&weight| weight as u32).sum::<u32>(), sum);
        assert!(row.contains(&WEIGHT_MAX));
    }
}

fn integer_gelu(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let table = source.i8s(256);
    let count = source.below(40);
    let x = source.i8s(count);
    let Some(answer) = ask(&request.tensor(&table).tensor(&x)) else {
        return;
    };
    for (&y, &x) in answer.results().take::<i8>().unwrap().iter().zip(&x) {
        assert_eq!(y, table[(i32::from(x) + 128) as usize]);
    }
}

fn integer_pixel(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let count = source.below(40);
    let (values, constants) = (source.floats(count), source.floats(2));
    let Some(answer) = ask(&request.tensor(&values).tensor(&constants)) else {
        return;
    };
    let mut results = answer.results();
    assert!(
        results
            .take::<i16>()
            .unwrap()
            .iter()
            .all(|pixel| (-1..=255).contains(pixel))
    );
}

fn integer_int4(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let (outputs, inner, group) = (1 + source.below(20), 1 + source.below(30), 4 * (1 + source.below(9)));
    let (q, scales) = (source.i8s(outputs * inner), source.i8s(outputs * inner.div_ceil(group)));
    let scales: Vec<u8> = scales.into_iter().map(|scale| scale as u8).collect();
    let request = request.tensor(&q).tensor(&scales).tensor(&[group as u32, inner as u32]);
    let Some(answer) = ask(&request) else { return };
    let mut results = answer.results();
    assert_eq!(results.take::<i8>().unwrap().len(), q.len());
    let packed = results.take::<u8>().unwrap();
    // Requests whose arguments have other lengths than they say are among them.
    assert_eq!(packed.len(), tec_edge::int4::panels_len(q.len() / inner, inner, group));
}

fn encode(request: Request, source: &mut Source<'_>, ask: Ask<'_>) {
    let headers = headers();
    let header = &headers[source.below(headers.len())];
    let geometry = header.geometry;
    let request = request.tensor(&file(header, u64::from(source.byte())));
    let request = if source.byte() < 128 {
        let pixels: Vec<u8> = source
            .i8s(geometry.image_len())
            .into_iter()
            .map(|pixel| pixel as u8)
            .collect();
        request.tensor(&pixels)
    } else {
        request.tensor(&source.floats(geometry.image_len()))
    };
    let Some(answer) = ask(&request) else { return };
    let mut results = answer.results();
    let lens = [(); 4].map(|()| results.take::<i16>().unwrap().len());
    let dim = geometry.dim;
    assert_eq!(lens, [dim, dim, geometry.patches() * dim, header.classes()]);
}

/// What no operation of the device reaches.
fn direct(source: &mut Source<'_>) {
    match source.byte() % 6 {
        0 => {
            let count = source.below(70);
            let keys = source.floats(count);
            let mut order = vec![7; source.len(keys.len())];
            match mask::argsort(&keys, &mut order) {
                Ok(()) => {
                    assert_permutation(&order);
                    assert!(
                        order
                            .windows(2)
                            .all(|pair| keys[pair[0] as usize] <= keys[pair[1] as usize])
                    );
                }
                Err(Error::NotANumber { index, .. }) => assert!(keys[index].is_nan()),
                Err(_) => assert_ne!(order.len(), keys.len()),
            }
        }
        1 => {
            let depth = if source.one_in(8) {
                (source.extreme() % (1 << 20)) as usize
            } else {
                source.below(100)
            };
            let groups = groups(depth);
            assert!(
                groups >= 1 && (depth == 0 || depth.is_multiple_of(groups)),
                "{groups} of {depth}"
            );
        }
        2 => {
            let count = source.len(40);
            let values = source.floats(count);
            let mut running = lanes::Accumulator::new();
            values.iter().for_each(|&value| running.push(value));
            let (sum, total) = (lanes::sum(&values), running.total());
            assert!(
                sum.to_bits() == total.to_bits() || (sum.is_nan() && total.is_nan()),
                "{sum} and {total}"
            );
        }
        3 => {
            let double = |source: &mut Source<'_>| f64::from_bits(source.long());
            gelu_table(double(source), double(source), double(source), source.extreme() as i32);
        }
        4 => {
            let count = source.float();
            if let Ok(scale) = loss::feature_scale(count) {
                assert!(!scale.is_nan(), "{scale} for {count}");
            }
            activation::gelu_grad(count);
            round_shift(source.long() as i64, source.extreme());
        }
        _ => {
            let counter = std::array::from_fn(|_| source.word());
            let key = std::array::from_fn(|_| source.word());
            assert_eq!(philox::philox4x32_10(counter, key), philox::philox4x32_10(counter, key));
        }
    }
}
