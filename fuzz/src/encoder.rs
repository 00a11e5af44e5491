//! Small encoder files, and what must hold of every file that the reader accepts.

use tec_edge::format::{Head, Header, Normalization, SCALES_EPSILON_AT, Section, checksum, file_len, sections, write};
use tec_edge::panel::pack;
use tec_edge::{BackEnd, Encoder, Error, Geometry, Image, Output, OutputKind, Outputs, Pool, Precision, int4};

use crate::input::{Bytes, Random, Source};

/// The shapes of the files that are mutated.
pub const GEOMETRIES: [Geometry; 4] = [
    shape(4, 2, 1, 4, 1, 2, 3),
    shape(6, 2, 3, 6, 2, 3, 5),
    shape(5, 5, 1, 1, 1, 1, 1),
    shape(8, 4, 1, 12, 2, 12, 9),
];

const fn shape(
    image_size: usize,
    patch_size: usize,
    channels: usize,
    dim: usize,
    depth: usize,
    heads: usize,
    hidden: usize,
) -> Geometry {
    Geometry {
        image_size,
        patch_size,
        channels,
        dim,
        depth,
        heads,
        hidden,
    }
}

/// A valid header.
pub fn header(geometry: Geometry) -> Header {
    let used = |value: f32| core::array::from_fn(|i| if i < geometry.channels { value } else { 0.0 });
    Header {
        geometry,
        pool: Pool::Mean,
        fc_norm: false,
        head: None,
        precision: Precision::Int8,
        name_len: 5,
        residual_bits: 8,
        epsilon: 1000,
        patch_shift: 42,
        norm_bits: 45,
        class_bits: 11,
        mean_bits: 13,
        patch_bits: 12,
        normalization: Normalization {
            mean: used(0.5),
            std: used(0.25),
        },
    }
}

/// Headers of the files that are mutated: every shape, and all that is optional.
pub fn headers() -> Vec<Header> {
    let head = |classes| {
        Some(Head {
            classes,
            norm_bits: 30,
            shift: 30,
            logit_bits: 9,
        })
    };
    let all = GEOMETRIES.into_iter().map(header).enumerate();
    let all = all.flat_map(|(number, plain)| {
        let full = Header {
            fc_norm: number % 2 == 0,
            pool: if number < 2 { Pool::Class } else { Pool::Mean },
            head: head([1, 3, 16, 17][number]),
            precision: Precision::Int4 {
                group: [4, 8, 64, 4][number],
            },
            ..plain
        };
        [plain, full]
    });
    all.collect()
}

/// A valid file: random weights, multipliers and offsets over their whole range.
///
/// # Panics
/// If the header is not valid.
pub fn file(header: &Header, seed: u64) -> Vec<u8> {
    use Section::*;
    let mut random = Random(seed);
    let mut out = vec![0; file_len(header).unwrap()];
    write(header, &mut out, |section, _, bytes| {
        bytes.iter_mut().for_each(|slot| *slot = random.next_u64() as u8);
        match section {
            QkvWeight | ProjWeight | Fc1Weight | Fc2Weight if header.precision != Precision::Int8 => {
                let Precision::Int4 { group } = header.precision else {
                    return;
                };
                let (outputs, inner) = section.matrix(header).unwrap();
                let q: Vec<i8> = (0..outputs * inner).map(|_| random.next_u64() as i8).collect();
                let scales = outputs * inner.div_ceil(group);
                let scales: Vec<u8> = (0..scales).map(|_| random.next_u64() as u8).collect();
                bytes.fill(0);
                int4::pack(&q, &scales, inner, group, bytes);
            }
            PatchWeight | QkvWeight | ProjWeight | Fc1Weight | Fc2Weight | HeadWeight => {
                let (outputs, inner) = section.matrix(header).unwrap();
                let rows: Vec<i8> = (0..outputs * inner)
                    .map(|_| (random.next_u64() as i8).max(-127))
                    .collect();
                bytes.fill(0);
                pack(&rows, inner, bytemuck::cast_slice_mut(bytes));
            }
            PatchBias | QkvBias | ProjBias | Fc1Bias | Fc2Bias | HeadBias => {
                // 0x3f and 0xc0 begin what is below 2^30 in absolute value.
                bytes
                    .chunks_exact_mut(4)
                    .for_each(|word| word[3] = if word[3] < 0x80 { 0x3f } else { 0xc0 });
            }
            SoftmaxMultiplier => bytes.chunks_exact_mut(4).for_each(|word| word[3] &= 0x7f),
            Scales => {
                bytes.fill(0);
                bytes[..9].copy_from_slice(&[40, 40, 30, 40, 40, 40, 40, 40, 1]);
                bytes[SCALES_EPSILON_AT..][..8].copy_from_slice(&1000u64.to_le_bytes());
            }
            Name => bytes.iter_mut().for_each(|slot| *slot = b'a' + *slot % 26),
            _ => {}
        }
    })
    .unwrap();
    out
}

/// Makes the length and the checksum agree with the bytes, where they have a place.
pub fn seal(file: &mut [u8]) {
    let len = file.len() as u32;
    if let Some(slot) = file.get_mut(12..16) {
        slot.copy_from_slice(&len.to_le_bytes());
    }
    let sum = checksum(file);
    if let Some(slot) = file.get_mut(16..20) {
        slot.copy_from_slice(&sum.to_le_bytes());
    }
}

/// Opens a file; if the reader accepts it, checks what must hold of it, with an image that `source` decides. Says whether it was
/// accepted.
///
/// # Panics
/// Where something does not hold.
pub fn exercise(bytes: &Bytes, source: &mut Source<'_>) -> bool {
    let Ok(encoder) = Encoder::from_bytes(bytes.get()) else {
        return false;
    };
    assert_eq!(encoder.name().len(), usize::from(encoder.header().name_len));
    check_canonical(&encoder, bytes.get());
    if cost(encoder.geometry()) <= 1 << 18 {
        check_encoding(&encoder, source);
    }
    true
}

/// There is one way to write an encoder.
fn check_canonical(encoder: &Encoder<'_>, bytes: &[u8]) {
    let header = encoder.header();
    assert_eq!(file_len(header), Ok(bytes.len()));
    let mut again = vec![0xee; bytes.len()];
    let mut placed = sections(header);
    let written = write(header, &mut again, |section, block, slot| {
        let place = placed.next().unwrap();
        assert_eq!((place.section, place.block as usize), (section, block));
        slot.copy_from_slice(&bytes[place.offset as usize..][..place.len as usize]);
    });
    assert_eq!(written, Ok(()));
    assert_eq!(again, bytes);
}

/// Multiplications of one image.
fn cost(geometry: &Geometry) -> usize {
    let (tokens, dim) = (geometry.tokens(), geometry.dim);
    let token = 4 * dim * dim + 2 * dim * geometry.hidden + 2 * tokens * dim;
    geometry.depth * tokens * token + tokens * geometry.patch_len() * dim
}

#[derive(Debug, PartialEq)]
struct Encoded {
    class: Vec<i16>,
    mean: Vec<i16>,
    patches: Vec<i16>,
    logits: Vec<i16>,
}

/// Encodes with scratch memory and outputs that held `poison`; the outputs left out are empty.
fn encode(
    encoder: &Encoder<'_>,
    image: Image<'_>,
    outputs: Outputs,
    poison: u8,
    scratch_len: usize,
) -> (Result<(), Error>, Encoded) {
    const BEHIND: usize = 32;
    let mut scratch = Bytes::filled(scratch_len + BEHIND, poison);
    let (usable, behind) = scratch.get_mut().split_at_mut(scratch_len);
    let output = |kind, wanted| match wanted {
        true => vec![i16::from_ne_bytes([poison; 2]); encoder.output_len(kind)],
        false => Vec::new(),
    };
    let mut out = Encoded {
        class: output(OutputKind::Class, outputs.class),
        mean: output(OutputKind::Mean, outputs.mean),
        patches: output(OutputKind::Patches, outputs.patches),
        logits: output(OutputKind::Logits, outputs.logits),
    };
    let slots = Output {
        class: outputs.class.then_some(&mut out.class),
        mean: outputs.mean.then_some(&mut out.mean),
        patches: outputs.patches.then_some(&mut out.patches),
        logits: outputs.logits.then_some(&mut out.logits),
    };
    let result = encoder.encode(image, usable, slots);
    assert!(
        behind.iter().all(|&byte| byte == poison),
        "written behind the scratch memory"
    );
    (result, out)
}

fn check_encoding(encoder: &Encoder<'_>, source: &mut Source<'_>) {
    let len = encoder.geometry().image_len();
    let pixels: Vec<u8> = (0..len).map(|_| source.byte()).collect();
    let image = Image::Pixels(&pixels);
    let every = Outputs {
        logits: encoder.header().head.is_some(),
        ..Outputs::ALL
    };
    let need = encoder.scratch_len(every);

    // Neither the scratch memory nor the outputs' places show through: everything is written.
    let (result, all) = encode(encoder, image, every, 0x55, need);
    assert_eq!(result, Ok(()));
    let (result, again) = encode(encoder, image, every, 0xaa, need);
    assert_eq!((result, &again), (Ok(()), &all));

    // Every back end gives the same, and needs no more than it says.
    for back_end in BackEnd::all() {
        let encoder = encoder.with_back_end(back_end);
        let (result, other) = encode(&encoder, image, every, 0x99, encoder.scratch_len(every));
        assert_eq!((result, &other), (Ok(()), &all), "{}", back_end.name());
    }

    // One byte less is refused, and nothing is written.
    let (result, untouched) = encode(encoder, image, every, 0x77, need - 1);
    let refusal = Error::Length {
        what: "scratch memory's bytes",
        expected: need,
        actual: need - 1,
    };
    assert_eq!(result, Err(refusal));
    assert!(untouched.class.iter().chain(&untouched.patches).all(|&x| x == 0x7777));

    // Each output alone is the same as among all, in the scratch memory that it needs.
    for (outputs, expected) in [
        (Outputs::CLASS, &all.class),
        (Outputs::MEAN, &all.mean),
        (Outputs::PATCHES, &all.patches),
        (Outputs::LOGITS, &all.logits),
    ] {
        if outputs.logits && !every.logits {
            let refusal = Error::NoOutput { what: "class logits" };
            assert_eq!(encode(encoder, image, outputs, 0x33, need).0, Err(refusal));
            continue;
        }
        let need = encoder.scratch_len(outputs);
        let (result, one) = encode(encoder, image, outputs, 0x33, need);
        assert_eq!(result, Ok(()));
        assert_eq!(&[one.class, one.mean, one.patches, one.logits].concat(), expected);
        assert!(encode(encoder, image, outputs, 0x33, need - 1).0.is_err());
    }

    let values: Vec<f32> = (0..len).map(|_| source.float()).collect();
    let (result, from_values) = encode(encoder, Image::Normalized(&values), every, 0x77, need);
    match result {
        Ok(()) => {}
        Err(Error::NotANumber { index }) => {
            assert!(index < len);
            let mut slots = from_values
                .class
                .iter()
                .chain(&from_values.mean)
                .chain(&from_values.patches);
            assert!(slots.all(|&x| x == 0x7777), "written in spite of a NaN");
        }
        Err(error) => panic!("{error:?}"),
    }
    let (result, _) = encode(encoder, Image::Normalized(&values[1..]), Outputs::CLASS, 0, need);
    assert!(matches!(result, Err(Error::Length { .. })));

    let mut real = vec![f32::NAN; all.mean.len()];
    encoder.to_f32(OutputKind::Mean, &all.mean, &mut real);
    let step = 2f64.powi(-encoder.output_scale_shift(OutputKind::Mean));
    for (&value, &real) in all.mean.iter().zip(&real) {
        assert_eq!(f64::from(real), f64::from(value) * step);
    }
}
