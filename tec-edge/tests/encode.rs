//! The encoder against a second implementation, and what its outputs must not depend on.

mod common;

use common::{Bytes, Random, file, geometry, header, reference, reference_of, variants};
use tec_edge::{BackEnd, Encoder, Error, Geometry, Image, Options, Output, OutputKind, Outputs};

#[derive(Debug, PartialEq)]
struct Encoded {
    class: Vec<i16>,
    mean: Vec<i16>,
    patches: Vec<i16>,
    logits: Vec<i16>,
}

/// Every output that an encoder has.
fn all_of(encoder: &Encoder<'_>) -> Outputs {
    Outputs {
        logits: encoder.header().head.is_some(),
        ..Outputs::ALL
    }
}

fn encode(encoder: &Encoder<'_>, image: Image<'_>, poison: u8) -> Encoded {
    encode_with(encoder, &Options::default(), image, 0, poison)
}

/// With `more` bytes of scratch memory than needed.
fn encode_with(encoder: &Encoder<'_>, options: &Options<'_>, image: Image<'_>, more: usize, poison: u8) -> Encoded {
    let mut scratch = Bytes::filled(encoder.scratch_len_with(options, all_of(encoder)) + more, poison);
    let dim = encoder.geometry().dim;
    let patches = options.patches.map_or(encoder.geometry().patches(), <[u32]>::len);
    let mut out = Encoded {
        class: vec![7; dim],
        mean: vec![7; dim],
        patches: vec![7; patches * dim],
        logits: vec![7; encoder.output_len(OutputKind::Logits)],
    };
    let output = Output {
        class: Some(&mut out.class),
        mean: Some(&mut out.mean),
        patches: Some(&mut out.patches),
        logits: (!out.logits.is_empty()).then_some(&mut out.logits),
    };
    encoder.encode_with(options, image, scratch.get_mut(), output).unwrap();
    out
}

fn pixels(encoder: &Encoder<'_>, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..encoder.geometry().image_len())
        .map(|_| random.next() as u8)
        .collect()
}

fn geometries() -> Vec<Geometry> {
    let g = geometry();
    vec![
        g,
        // One patch, one channel, one head of width one.
        Geometry {
            image_size: 5,
            patch_size: 5,
            channels: 1,
            dim: 1,
            depth: 1,
            heads: 1,
            hidden: 1,
        },
        // Tiles that are full and that are not; more heads than channels of a head.
        Geometry {
            image_size: 8,
            patch_size: 4,
            channels: 1,
            dim: 24,
            depth: 3,
            heads: 12,
            hidden: 7,
        },
        Geometry {
            image_size: 14,
            patch_size: 2,
            channels: 3,
            dim: 20,
            depth: 1,
            heads: 1,
            hidden: 70,
        },
    ]
}

#[test]
fn gives_the_bits_of_the_specification() {
    for (i, geometry) in geometries().into_iter().enumerate() {
        for (wild, mut header) in [false, true]
            .into_iter()
            .flat_map(|wild| variants(geometry).into_iter().map(move |v| (wild, v)))
        {
            if wild {
                header.residual_bits = -3;
                header.epsilon = 1;
                header.class_bits = -5;
            }
            let bytes = Bytes::new(&file(&header, i as u64, wild));
            for seed in 0..3 * BackEnd::all().count() as u64 {
                let back_end = BackEnd::all().nth(seed as usize / 3).unwrap();
                let encoder = Encoder::from_bytes(bytes.get()).unwrap().with_back_end(back_end);
                let pixels = pixels(&encoder, seed);
                let got = encode(&encoder, Image::Pixels(&pixels), 0);
                let expected = reference(&header, bytes.get(), &pixels);
                let what = format!("{}, geometry {i}, wild {wild}, {header:?}", back_end.name());
                assert_eq!(got.class, expected.class, "class, {what}");
                assert_eq!(got.logits, expected.logits, "logits, {what}");
                assert_eq!(got.patches, expected.patches, "patches, {what}");
                assert_eq!(got.mean, expected.mean, "mean, {what}");
                let alive = got
                    .patches
                    .iter()
                    .filter(|x| (1..32767).contains(&x.unsigned_abs()))
                    .count();
                assert!(
                    wild || geometry.dim == 1 || alive > got.patches.len() / 2,
                    "the outputs say little"
                );
                let alive = got
                    .logits
                    .iter()
                    .filter(|x| (1..32767).contains(&x.unsigned_abs()))
                    .count();
                assert!(
                    wild || geometry.dim < 12 || alive * 2 >= got.logits.len(),
                    "{:?}",
                    got.logits
                );
            }
        }
    }
}

#[test]
fn does_not_depend_on_what_the_scratch_held() {
    for header in variants(geometry()) {
        let bytes = Bytes::new(&file(&header, 1, false));
        let encoder = Encoder::from_bytes(bytes.get()).unwrap();
        let pixels = pixels(&encoder, 9);
        let first = encode(&encoder, Image::Pixels(&pixels), 0);
        for poison in [0x55, 0x80, 0xff] {
            assert_eq!(encode(&encoder, Image::Pixels(&pixels), poison), first);
        }
    }
}

#[test]
fn one_output_is_the_same_as_all() {
    for header in variants(geometry()) {
        let bytes = Bytes::new(&file(&header, 2, false));
        let encoder = Encoder::from_bytes(bytes.get()).unwrap();
        let pixels = pixels(&encoder, 3);
        let all = encode(&encoder, Image::Pixels(&pixels), 0);
        let mut scratch = Bytes::filled(encoder.scratch_len(Outputs::MEAN), 0xaa);
        let image = Image::Pixels(&pixels);
        let mut out = vec![0; 12];
        let output = Output {
            mean: Some(&mut out),
            ..Output::default()
        };
        encoder.encode(image, scratch.get_mut(), output).unwrap();
        assert_eq!(out, all.mean);
        let output = Output {
            class: Some(&mut out),
            ..Output::default()
        };
        encoder.encode(image, scratch.get_mut(), output).unwrap();
        assert_eq!(out, all.class);

        let mut out = vec![0; all.logits.len()];
        let mut scratch = Bytes::filled(encoder.scratch_len(Outputs::LOGITS), 0xaa);
        let output = Output {
            logits: Some(&mut out),
            ..Output::default()
        };
        let done = encoder.encode(image, scratch.get_mut(), output);
        match header.head {
            Some(_) => assert_eq!((done, out), (Ok(()), all.logits)),
            None => assert_eq!(done, Err(Error::NoOutput { what: "class logits" })),
        }
    }
}

#[test]
fn grey_pixels_are_those_of_every_channel() {
    let grey: Vec<u8> = (0..144).map(|i| (i * 37 % 256) as u8).collect();
    let colors: Vec<u8> = grey.iter().flat_map(|&pixel| [pixel; 3]).collect();
    for channels in [1, 3] {
        let header = header(Geometry { channels, ..geometry() });
        let bytes = Bytes::new(&file(&header, 3, false));
        let encoder = Encoder::from_bytes(bytes.get()).unwrap();
        let pixels = if channels == 1 { &grey } else { &colors };
        let expected = encode(&encoder, Image::Pixels(pixels), 0);
        assert_eq!(encode(&encoder, Image::Grey(&grey), 0), expected);
        let mut scratch = Bytes::filled(encoder.scratch_len(Outputs::ALL), 0);
        let error = encoder.encode(Image::Grey(&colors), scratch.get_mut(), Output::default());
        let what = "image's values";
        let wrong = Err(Error::Length {
            what,
            expected: 144,
            actual: 432,
        });
        assert_eq!(error, wrong);
    }
}

#[test]
fn normalized_images_are_pixels() {
    let header = header(geometry());
    let bytes = Bytes::new(&file(&header, 3, false));
    let encoder = Encoder::from_bytes(bytes.get()).unwrap();
    let pixels = pixels(&encoder, 4);
    let mut values: Vec<f32> = pixels.iter().map(|&p| (f32::from(p) / 255.0 - 0.5) / 0.25).collect();
    let from_pixels = encode(&encoder, Image::Pixels(&pixels), 0);
    let from_values = encode(&encoder, Image::Normalized(&values), 0);
    assert_eq!(from_pixels.patches, from_values.patches);

    // 12 pixels a row of 3 channels: index 300 is in row 8, so in the last row of patches.
    values[300] = f32::NAN;
    let mut out = [5i16; 12];
    let mut scratch = Bytes::filled(encoder.scratch_len(Outputs::CLASS), 0);
    let output = Output {
        class: Some(&mut out),
        ..Output::default()
    };
    let error = encoder.encode(Image::Normalized(&values), scratch.get_mut(), output);
    assert_eq!(error, Err(Error::NotANumber { index: 300 }));
    assert_eq!(out, [5; 12]);
}

#[test]
fn real_values_are_exact() {
    let mut header = header(geometry());
    header.norm_bits = 45;
    for bits in [-16i8, 0, 12, 44] {
        header.class_bits = bits;
        let bytes = Bytes::new(&file(&header, 5, false));
        let encoder = Encoder::from_bytes(bytes.get()).unwrap();
        assert_eq!(encoder.output_scale_shift(OutputKind::Class), bits.into());
        let mut out = [0.0];
        for value in [-32768i16, -1, 1, 12345] {
            encoder.to_f32(OutputKind::Class, &[value], &mut out);
            assert_eq!(f64::from(out[0]), f64::from(value) * 2f64.powi(-i32::from(bits)));
        }
    }
}

#[test]
fn wrong_slices_are_refused() {
    let bytes = Bytes::new(&file(&header(geometry()), 6, false));
    let encoder = Encoder::from_bytes(bytes.get()).unwrap();
    let image = pixels(&encoder, 0);
    let need = encoder.scratch_len(Outputs::CLASS);
    let mut memory = Bytes::filled(need + 16, 0);
    let mut class = [9i16; 12];

    let mut run = |pixels: &[u8], scratch: std::ops::Range<usize>, len: usize| {
        let output = Output {
            class: Some(&mut class[..len]),
            ..Output::default()
        };
        encoder.encode(Image::Pixels(pixels), &mut memory.get_mut()[scratch], output)
    };
    let length = |what, expected, actual| Err(Error::Length { what, expected, actual });
    assert_eq!(run(&image[1..], 0..need, 12), length("image's values", 432, 431));
    assert_eq!(run(&image, 0..need, 11), length("class output's values", 12, 11));
    assert_eq!(
        run(&image, 0..need - 1, 12),
        length("scratch memory's bytes", need, need - 1)
    );
    assert_eq!(
        run(&image, 4..need + 8, 12),
        Err(Error::Misaligned {
            what: "scratch memory",
            by: 4
        })
    );
    assert_eq!(run(&image, 0..need, 12), Ok(()));
    assert_eq!(run(&image, 0..need + 16, 12), Ok(()));
    let long = Output {
        patches: Some(&mut class),
        ..Output::default()
    };
    let error = encoder.encode(Image::Pixels(&image), memory.get_mut(), long);
    assert_eq!(error, length("patch outputs' values", 108, 12));
}

#[test]
fn scratch_is_small() {
    let tiny = |image_size: usize, patch_size: usize, dim: usize, depth: usize| Geometry {
        image_size,
        patch_size,
        channels: 3,
        dim,
        depth,
        heads: 3,
        hidden: 4 * dim,
    };
    // 0.44 M parameters; ViT-Ti/16, of which one block has the buffers of all twelve; ViT-S/14.
    let small = Geometry {
        heads: 6,
        ..tiny(224, 14, 384, 1)
    };
    for (geometry, limit) in [(tiny(32, 4, 96, 4), 32), (tiny(224, 16, 192, 1), 256), (small, 512)] {
        let bytes = Bytes::new(&file(&header(geometry), 0, false));
        let encoder = Encoder::from_bytes(bytes.get()).unwrap();
        for back_end in BackEnd::all() {
            let len = encoder.with_back_end(back_end).scratch_len(Outputs::ALL);
            println!("scratch of dim {}, {}: {len} bytes", geometry.dim, back_end.name());
            let usage = encoder.scratch_usage(back_end.name(), Outputs::ALL).unwrap();
            // More rows at once are for computers, which have the memory.
            if usage.tile_rows <= 6 {
                assert!(len <= limit * 1024, "{}: {len}", back_end.name());
            }
            // And every byte of it has a purpose.
            assert_eq!(usage.total(), len);
        }
        // What this order of computing cannot do without: tokens of 16 bits, keys and values of all heads, and of the four tokens that
        // share a pass over the weights what enters the MLP and its hidden activations.
        let (tokens, dim) = (geometry.tokens(), geometry.dim);
        let bound = 2 * tokens * dim + 2 * tokens * dim + 4 * (dim + geometry.hidden);
        let len = encoder.with_back_end(BackEnd::SCALAR).scratch_len(Outputs::ALL);
        assert!(len * 10 <= bound * 11, "{len} is over 10 % more than {bound}");
    }
}

/// Every back end, with any number of workers, any scratch memory and any patches, gives the scalar back end's bits, or the
/// reference's where there is one.
#[test]
fn neither_back_end_nor_workers_nor_memory_change_a_bit() {
    let larger = Geometry {
        image_size: 24,
        patch_size: 2,
        channels: 3,
        dim: 64,
        depth: 2,
        heads: 2,
        hidden: 144,
    };
    for (i, geometry) in geometries().into_iter().chain([larger]).enumerate() {
        let variants = variants(geometry)
            .into_iter()
            .take(if geometry.dim == 64 { 2 } else { 5 });
        for (wild, header) in variants.flat_map(|header| [(false, header), (true, header)]) {
            let bytes = Bytes::new(&file(&header, 40 + i as u64, wild));
            let encoder = Encoder::from_bytes(bytes.get()).unwrap();
            let image = pixels(&encoder, 5);
            let scalar = encode(&encoder.with_back_end(BackEnd::SCALAR), Image::Pixels(&image), 0);
            let last = geometry.patches() as u32 - 1;
            let some: Vec<u32> = (0..=last).rev().step_by(2).collect();
            let expected = reference_of(&header, bytes.get(), &image, &some);
            for back_end in BackEnd::all() {
                let encoder = encoder.with_back_end(back_end);
                for workers in [1, 2, 3, 7, 300] {
                    for more in [0, 100, 5_000, 200_000] {
                        let what = format!(
                            "{}, geometry {i}, {workers} workers, {more} more bytes",
                            back_end.name()
                        );
                        let options = Options { workers, patches: None };
                        let got = encode_with(&encoder, &options, Image::Pixels(&image), more, 0xA5);
                        assert_eq!(got, scalar, "{what}");
                        let options = Options {
                            workers,
                            patches: Some(&some),
                        };
                        let got = encode_with(&encoder, &options, Image::Pixels(&image), more, 0xA5);
                        assert_eq!(got.class, expected.class, "{what}");
                        assert_eq!(got.patches, expected.patches, "{what}");
                        assert_eq!(got.mean, expected.mean, "{what}");
                        assert_eq!(got.logits, expected.logits, "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn patches_that_do_not_exist_are_refused() {
    let header = header(geometry());
    let bytes = Bytes::new(&file(&header, 0, false));
    let encoder = Encoder::from_bytes(bytes.get()).unwrap();
    let image = pixels(&encoder, 0);
    let refused = |patches: &[u32]| {
        let options = Options {
            patches: Some(patches),
            workers: 1,
        };
        let mut scratch = Bytes::filled(encoder.scratch_len(Outputs::ALL), 0);
        encoder.encode_with(&options, Image::Pixels(&image), scratch.get_mut(), Output::default())
    };
    assert_eq!(refused(&[0, 9]), Err(Error::Patch { patches: 9, patch: 9 }));
    let none = Error::Length {
        what: "patches to encode",
        expected: 1,
        actual: 0,
    };
    assert_eq!(refused(&[]), Err(none));
    let many = Error::Length {
        what: "patches to encode",
        expected: 9,
        actual: 10,
    };
    assert_eq!(refused(&[0; 10]), Err(many));
    assert_eq!(refused(&[8, 8]), Ok(()));
}
