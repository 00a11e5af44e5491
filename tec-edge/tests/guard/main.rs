//! An encoder touches nothing beyond the slices that it is given: each ends at, or begins after, an inaccessible page.
#![cfg(unix)]

#[path = "../common/mod.rs"]
mod common;
mod memory;

use common::{Bytes, Random, file, geometry, variants};
use memory::Guarded;
use tec_edge::layers::{I32s, Linear, Norm};
use tec_edge::{BackEnd, Encoder, Geometry, Image, Options, Output, OutputKind, Outputs, Precision, panel};

/// Class, mean, patches and logits, one after the other.
fn encode(file: &[u8], back_end: BackEnd, options: &Options<'_>, kind: usize, at_end: bool) -> Vec<i16> {
    let file = Guarded::new(file, 16, at_end);
    let encoder = Encoder::from_bytes(file.get()).unwrap().with_back_end(back_end);
    let g = encoder.geometry();
    let mut random = Random(1);
    let bytes: Vec<u8> = (0..g.image_len()).map(|_| random.next() as u8).collect();
    let floats: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 64.0 - 2.0).collect();
    let bytes = Guarded::new(&bytes, 1, at_end);
    let grey = Guarded::new(&bytes.get()[..g.image_size * g.image_size], 1, at_end);
    let floats = Guarded::new(&floats, 4, at_end);
    let image = [
        Image::Pixels(bytes.get()),
        Image::Grey(grey.get()),
        Image::Normalized(floats.get()),
    ][kind];
    let wanted = Outputs {
        logits: encoder.header().head.is_some(),
        ..Outputs::ALL
    };
    let scratch = vec![0xA5_u8; encoder.scratch_len_with(options, wanted)];
    let mut scratch = Guarded::new(&scratch, 16, at_end);
    let of = |len: usize| Guarded::new(&vec![7_i16; len], 2, at_end);
    let patches = options.patches.map_or(g.patches(), <[u32]>::len);
    let (mut class, mut mean, mut rows) = (of(g.dim), of(g.dim), of(patches * g.dim));
    let mut logits = of(encoder.output_len(OutputKind::Logits));
    let output = Output {
        class: Some(class.get_mut()),
        mean: Some(mean.get_mut()),
        patches: Some(rows.get_mut()),
        logits: wanted.logits.then_some(logits.get_mut()),
    };
    encoder.encode_with(options, image, scratch.get_mut(), output).unwrap();
    [class.get(), mean.get(), rows.get(), logits.get()].concat()
}

#[test]
fn an_encoder_stays_within_its_slices() {
    let shaped = |image_size, patch_size, channels, dim, heads, hidden| Geometry {
        image_size,
        patch_size,
        channels,
        dim,
        depth: 1,
        heads,
        hidden,
    };
    let geometries = [
        geometry(),
        shaped(5, 5, 1, 1, 1, 1),
        shaped(6, 2, 1, 24, 6, 7),
        shaped(14, 2, 3, 20, 1, 70),
        shaped(12, 3, 3, 80, 1, 130),
        shaped(20, 4, 3, 66, 3, 65),
        // More tokens and channels than a tile of AMX has.
        shaped(36, 4, 3, 144, 2, 130),
    ];
    let mut runs = 0;
    for geometry in geometries {
        for header in variants(geometry) {
            let bytes = Bytes::new(&file(&header, 3, false));
            let all: Vec<u32> = (0..geometry.patches() as u32).collect();
            for (workers, patches) in [
                (1, None),
                (2, None),
                (3, None),
                (2, Some(&all[..all.len().div_ceil(2)])),
            ] {
                let options = Options { workers, patches };
                for kind in 0..3 {
                    let expected = encode(bytes.get(), BackEnd::SCALAR, &options, kind, true);
                    for back_end in BackEnd::all() {
                        for at_end in [true, false] {
                            let got = encode(bytes.get(), back_end, &options, kind, at_end);
                            assert!(
                                got == expected,
                                "{back_end:?}, {geometry:?}, {options:?}, kind {kind}, {at_end}"
                            );
                            runs += 1;
                        }
                    }
                }
            }
        }
    }
    println!("{runs} runs between inaccessible pages");
}

#[test]
fn single_calls_stay_within_their_slices() {
    let mut random = Random(2);
    for (rows, inner, outputs) in [
        (1, 1, 1),
        (3, 5, 17),
        (16, 64, 16),
        (17, 70, 33),
        (33, 128, 20),
        (40, 200, 5),
    ] {
        let mut eight = |len: usize| -> Vec<i8> { (0..len).map(|_| random.next() as i8).collect() };
        let (activations, weights, values) = (eight(rows * inner), eight(outputs * inner), eight(outputs * inner));
        let mut panels = vec![0; panel::panels_len(outputs, inner)];
        panel::pack(&weights, inner, &mut panels);
        let mut value_panels = vec![0; panel::panels_len(outputs, inner)];
        panel::pack(&values, inner, &mut value_panels);
        let mut words = |len: usize, bits: u32| -> Vec<u8> {
            let word = |_| (random.next() as i32 >> (32 - bits)).to_le_bytes();
            (0..len).flat_map(word).collect()
        };
        let (bias, multiplier) = (words(outputs, 20), words(outputs, 31));
        let (norm_multiplier, norm_offset) = (words(inner, 31), words(inner, 31));
        let token: Vec<i16> = (0..inner).map(|_| random.next() as i16).collect();
        let scores: Vec<i32> = (0..inner).map(|_| random.next() as i32 >> 12).collect();
        let softmax: Vec<i16> = (0..rows * panel::padded(inner))
            .map(|i| {
                if i % panel::padded(inner) < inner {
                    (random.next() % 4096) as i16
                } else {
                    0
                }
            })
            .collect();

        let of_linear = |back_end: BackEnd, at_end| {
            let panels = Guarded::new(&panels, 1, at_end);
            let (bias, multiplier) = (Guarded::new(&bias, 1, at_end), Guarded::new(&multiplier, 1, at_end));
            let layer = Linear {
                weight: bytemuck::cast_slice(panels.get()),
                precision: Precision::Int8,
                inner,
                bias: I32s::from_bytes(bias.get()),
                multiplier: I32s::from_bytes(multiplier.get()),
                shift: 36,
            };
            let activations = Guarded::new(&activations, 1, at_end);
            let mut memory = Guarded::new(&vec![0x5A_u8; layer.memory(rows)], 16, at_end);
            let mut out = Guarded::new(&vec![7_i16; rows * outputs], 2, at_end);
            let linear = back_end.linear(&layer, activations.get(), memory.get_mut(), out.get_mut());
            assert_eq!(linear, Ok(()));
            out.get().to_vec()
        };
        let of_norm = |back_end: BackEnd, at_end| {
            let (multiplier, offset) = (
                Guarded::new(&norm_multiplier, 1, at_end),
                Guarded::new(&norm_offset, 1, at_end),
            );
            let norm = Norm {
                multiplier: I32s::from_bytes(multiplier.get()),
                offset: I32s::from_bytes(offset.get()),
                bits: 40,
                epsilon: 1,
            };
            let token = Guarded::new(&token, 2, at_end);
            let mut memory = Guarded::new(&vec![0x5A_u8; norm.memory(inner)], 16, at_end);
            let mut out = Guarded::new(&vec![7_i8; inner], 1, at_end);
            assert_eq!(
                back_end.norm(&norm, token.get(), memory.get_mut(), out.get_mut()),
                Ok(())
            );
            out.get().to_vec()
        };
        let of_softmax = |back_end: BackEnd, at_end| {
            let scores = Guarded::new(&scores, 4, at_end);
            let mut weights = Guarded::new(&vec![7_i16; inner], 2, at_end);
            let sum = back_end.softmax(scores.get(), 1 << 30, 40, weights.get_mut());
            (sum, weights.get().to_vec())
        };
        let of_weighted = |back_end: BackEnd, at_end| {
            let mut weights = Guarded::new(&softmax, 2, at_end);
            let values = Guarded::new(&value_panels, 1, at_end);
            let mut out = Guarded::new(&vec![7_i32; rows * outputs], 4, at_end);
            back_end.weighted(weights.get_mut(), inner, values.get(), out.get_mut());
            out.get().to_vec()
        };
        for back_end in BackEnd::all() {
            for at_end in [true, false] {
                let what = format!("{}, {rows} rows, {inner} inputs", back_end.name());
                let plain = BackEnd::SCALAR;
                assert_eq!(of_linear(back_end, at_end), of_linear(plain, at_end), "{what}");
                assert_eq!(of_norm(back_end, at_end), of_norm(plain, at_end), "{what}");
                assert_eq!(of_softmax(back_end, at_end), of_softmax(plain, at_end), "{what}");
                assert_eq!(of_weighted(back_end, at_end), of_weighted(plain, at_end), "{what}");
            }
        }
    }
}

/// Run by the test below, in a process of its own.
#[test]
#[ignore = "it dies on purpose"]
fn reads_outside() {
    let behind = std::env::var("TEC_TRESPASS").unwrap() == "behind";
    println!("read: {}", Guarded::new(&[1_u8; 100], 1, behind).trespass(behind));
}

/// The control: one byte too far ends a process, on either side.
#[test]
fn the_pages_stop_a_planted_read() {
    use std::os::unix::process::ExitStatusExt;
    for side in ["behind", "before"] {
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "reads_outside", "--nocapture"])
            .env("TEC_TRESPASS", side)
            .output()
            .unwrap();
        let signal = run.status.signal();
        assert!(
            matches!(signal, Some(libc::SIGSEGV | libc::SIGBUS)),
            "a read {side} the slice: {run:?}"
        );
    }
}
