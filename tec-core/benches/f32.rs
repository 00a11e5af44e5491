//! The f32 functions beside the straightforward version of each: `libm`'s functions, one element after the other, plain
//! sums.
//!
//! ```sh
//! cargo bench -p tec-core --bench f32              # times: libm, the baseline CPU, AVX2, alternately
//! cargo bench -p tec-core --bench f32 -- gelu      # only these
//! # instructions; also counted_libm and counted_baseline
//! valgrind --tool=callgrind --toggle-collect='*counted_avx2*' target/release/deps/f32-HASH --count gelu
//! ```
//!
//! A time is that of one element: the median of 41 rounds, and of each round's ratio to `libm`.

use std::hint::black_box;
use std::time::Instant;

use tec_core::philox::{Noise, Stream};
use tec_core::{activation, norm, relation, softmax};

/// Elements of every tensor: 96 rows of attention to 196 patches, 49 rows 384 wide.
const LEN: usize = 18_816;
const ROUNDS: usize = 41;
/// Calls for one time.
const CALLS: usize = 20;
/// Calls whose instructions are counted.
const COUNTED: usize = 10;

type Kernel = fn(&Inputs, &mut [f32]);

struct Inputs {
    /// 196, which the optimizer does not know.
    patches: usize,
    /// 384, likewise.
    width: usize,
    x: Vec<f32>,
    up: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// One function in its versions, which give about the same values.
struct Case {
    name: &'static str,
    libm: Kernel,
    baseline: Kernel,
    avx2: Option<Kernel>,
}

/// Defines cases: the body of `ours` is compiled for the baseline and for AVX2.
macro_rules! cases {
    ($($name:ident: |$inputs:ident, $out:ident| ours $ours:block libm $libm:block)*) => {
        fn cases() -> Vec<Case> {
            vec![$({
                #[inline(always)]
                fn ours($inputs: &Inputs, $out: &mut [f32]) $ours

                fn libm_version($inputs: &Inputs, $out: &mut [f32]) $libm

                Case { name: stringify!($name), libm: libm_version, baseline: ours, avx2: avx2!(ours) }
            }),*]
        }
    };
}

/// A function that runs `ours` compiled for AVX2, if the processor has it.
macro_rules! avx2 {
    ($ours:ident) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2")]
            fn wide(inputs: &Inputs, out: &mut [f32]) {
                $ours(inputs, out)
            }
            fn call(inputs: &Inputs, out: &mut [f32]) {
                // SAFETY: only called where the processor was asked, three lines below.
                unsafe { wide(inputs, out) }
            }
            is_x86_feature_detected!("avx2").then_some(call as Kernel)
        }
        #[cfg(not(target_arch = "x86_64"))]
        None
    }};
}

cases! {
    exp: |inputs, out|
    ours {
        for (out, &x) in out.iter_mut().zip(&inputs.x) {
            *out = activation::exp(x);
        }
    }
    libm {
        for (out, &x) in out.iter_mut().zip(&inputs.x) {
            *out = libm::expf(x);
        }
    }

    erf: |inputs, out|
    ours {
        for (out, &x) in out.iter_mut().zip(&inputs.x) {
            *out = activation::erf(x);
        }
    }
    libm {
        for (out, &x) in out.iter_mut().zip(&inputs.x) {
            *out = libm::erff(x);
        }
    }

    gelu: |inputs, out|
    ours {
        activation::gelu_slice(&inputs.x, out).expect("equal lengths");
    }
    libm {
        for (out, &x) in out.iter_mut().zip(&inputs.x) {
            *out = 0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2));
        }
    }

    gelu_backward: |inputs, out|
    ours {
        activation::gelu_backward_slice(&inputs.x, &inputs.up, out).expect("equal lengths");
    }
    libm {
        for ((out, &x), &up) in out.iter_mut().zip(&inputs.x).zip(&inputs.up) {
            let below = 0.5 * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2));
            *out = up * (below + x * 0.398_942_3 * libm::expf(-0.5 * x * x));
        }
    }

    softmax: |inputs, out|
    ours {
        for (x, out) in inputs.x.chunks_exact(inputs.patches).zip(out.chunks_exact_mut(inputs.patches)) {
            softmax::softmax(x, 0.125, out).expect("equal lengths");
        }
    }
    libm {
        for (x, out) in inputs.x.chunks_exact(inputs.patches).zip(out.chunks_exact_mut(inputs.patches)) {
            plain_softmax(x, 0.125, out);
        }
    }

    softmax_backward: |inputs, out|
    ours {
        let rows = inputs.x.chunks_exact(inputs.patches).zip(inputs.up.chunks_exact(inputs.patches));
        for ((p, up), out) in rows.zip(out.chunks_exact_mut(inputs.patches)) {
            softmax::softmax_backward(p, up, 0.125, out).expect("equal lengths");
        }
    }
    libm {
        let rows = inputs.x.chunks_exact(inputs.patches).zip(inputs.up.chunks_exact(inputs.patches));
        for ((p, up), out) in rows.zip(out.chunks_exact_mut(inputs.patches)) {
            let mean: f32 = p.iter().zip(up).map(|(p, up)| p * up).sum();
            for ((out, p), up) in out.iter_mut().zip(p).zip(up) {
                *out = 0.125 * p * (up - mean);
            }
        }
    }

    tempered_target: |inputs, out|
    ours {
        relation::tempered_target(&inputs.x, inputs.patches, 0.7, out).expect("equal lengths");
    }
    libm {
        for (x, out) in inputs.x.chunks_exact(inputs.patches).zip(out.chunks_exact_mut(inputs.patches)) {
            plain_softmax(x, 1.0 / 0.7, out);
        }
    }

    log_sum_exp: |inputs, out|
    ours {
        for (x, out) in inputs.x.chunks_exact(inputs.patches).zip(out) {
            *out = softmax::log_sum_exp(x, 0.125);
        }
    }
    libm {
        for (x, out) in inputs.x.chunks_exact(inputs.patches).zip(out) {
            let max = x.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(0.125 * x));
            *out = max + libm::logf(x.iter().map(|x| libm::expf(0.125 * x - max)).sum::<f32>());
        }
    }

    layer_norm: |inputs, out|
    ours {
        for (x, out) in inputs.x.chunks_exact(inputs.width).zip(out.chunks_exact_mut(inputs.width)) {
            norm::layer_norm(x, &inputs.weight, &inputs.bias, 1e-6, out).expect("equal lengths");
        }
    }
    libm {
        for (x, out) in inputs.x.chunks_exact(inputs.width).zip(out.chunks_exact_mut(inputs.width)) {
            let mean = x.iter().sum::<f32>() / inputs.width as f32;
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / inputs.width as f32;
            let rstd = 1.0 / libm::sqrtf(variance + 1e-6);
            for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(&inputs.weight).zip(&inputs.bias) {
                *out = (x - mean) * rstd * weight + bias;
            }
        }
    }

    normalize_features: |inputs, out|
    ours {
        relation::normalize_features(&inputs.x, LEN / inputs.width, inputs.width, out).expect("equal lengths");
    }
    libm {
        let (patches, x) = (LEN / inputs.width, &inputs.x);
        for channel in 0..inputs.width {
            let column = || x.iter().skip(channel).step_by(inputs.width);
            let mean = column().sum::<f32>() / patches as f32;
            let variance = column().map(|x| (x - mean) * (x - mean)).sum::<f32>() / (patches - 1) as f32;
            let rstd = 1.0 / libm::sqrtf(variance + 1e-6);
            for (out, x) in out.iter_mut().skip(channel).step_by(inputs.width).zip(column()) {
                *out = (x - mean) * rstd;
            }
        }
    }
}

fn plain_softmax(x: &[f32], scale: f32, out: &mut [f32]) {
    let max = x.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(scale * x));
    for (out, &x) in out.iter_mut().zip(x) {
        *out = libm::expf(scale * x - max);
    }
    let sum: f32 = out.iter().sum();
    for out in out {
        *out /= sum;
    }
}

/// Values in [-scale, scale).
fn values(seed: u64, count: usize, scale: f32) -> Vec<f32> {
    let noise = Noise {
        seed,
        epoch: 0,
        sample: 0,
        stream: Stream::Init,
    };
    let mut values = vec![0.0; count];
    noise.fill(&mut values);
    values.iter().map(|v| (2.0 * v - 1.0) * scale).collect()
}

/// Nanoseconds of an element.
fn time(kernel: Kernel, inputs: &Inputs, out: &mut [f32]) -> f64 {
    let start = Instant::now();
    for _ in 0..CALLS {
        kernel(black_box(inputs), black_box(out));
    }
    start.elapsed().as_nanos() as f64 / (CALLS * LEN) as f64
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Both versions of ours have the same bits, and `libm`'s values are near.
fn check(case: &Case, inputs: &Inputs) {
    let run = |kernel: Kernel| {
        let mut out = vec![0.0; LEN];
        kernel(inputs, &mut out);
        out
    };
    let (ours, libm) = (run(case.baseline), run(case.libm));
    if let Some(avx2) = case.avx2 {
        assert_eq!(ours, run(avx2), "{}: AVX2 has other bits", case.name);
    }
    let largest = ours.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let error = ours.iter().zip(&libm).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(
        largest > 0.0 && error <= 1e-5 * largest,
        "{}: error {error:e}",
        case.name
    );
}

fn measure(case: &Case, inputs: &Inputs) {
    let mut out = vec![0.0; LEN];
    let kernels = [Some(case.libm), Some(case.baseline), case.avx2];
    let mut times = [const { Vec::new() }; 3];
    let mut ratios = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        let round = kernels.map(|kernel| kernel.map(|kernel| time(kernel, inputs, &mut out)));
        for (version, nanoseconds) in round.iter().enumerate() {
            if let (Some(libm), Some(nanoseconds)) = (round[0], nanoseconds) {
                times[version].push(*nanoseconds);
                ratios[version].push(libm / nanoseconds);
            }
        }
    }
    print!("{:<19}{:>8.2}", case.name, median(&mut times[0]));
    for version in 1..3 {
        if kernels[version].is_some() {
            let (time, ratio) = (median(&mut times[version]), median(&mut ratios[version]));
            print!("{time:>10.2} {ratio:>6.1} ×");
        }
    }
    println!();
}

// Their own functions, so that callgrind can be told to count in them alone.
#[inline(never)]
fn counted_libm(case: &Case, inputs: &Inputs, out: &mut [f32]) {
    (0..COUNTED).for_each(|_| (case.libm)(black_box(inputs), black_box(out)));
}

#[inline(never)]
fn counted_baseline(case: &Case, inputs: &Inputs, out: &mut [f32]) {
    (0..COUNTED).for_each(|_| (case.baseline)(black_box(inputs), black_box(out)));
}

#[inline(never)]
fn counted_avx2(case: &Case, inputs: &Inputs, out: &mut [f32]) {
    if let Some(avx2) = case.avx2 {
        (0..COUNTED).for_each(|_| avx2(black_box(inputs), black_box(out)));
    }
}

fn main() {
    let mut names: Vec<String> = std::env::args().skip(1).filter(|name| name != "--bench").collect();
    let count = names
        .iter()
        .position(|name| name == "--count")
        .map(|at| names.remove(at));
    let (patches, width) = (196, 384);
    let inputs = Inputs {
        patches,
        width,
        x: values(1, LEN, 6.0),
        up: values(2, LEN, 1.0),
        weight: values(3, width, 1.0),
        bias: values(4, width, 1.0),
    };
    if count.is_none() {
        println!("{:<19}{:>8}{:>18}{:>19}", "ns an element", "libm", "baseline", "AVX2");
    }
    for case in cases() {
        if !names.is_empty() && !names.iter().any(|name| name == case.name) {
            continue;
        }
        check(&case, &inputs);
        if count.is_some() {
            let mut out = vec![0.0; LEN];
            counted_libm(&case, &inputs, &mut out);
            counted_baseline(&case, &inputs, &mut out);
            counted_avx2(&case, &inputs, &mut out);
            println!("{}: {} elements", case.name, COUNTED * LEN);
        } else {
            measure(&case, &inputs);
        }
    }
}
