//! The functions of the header, called as C calls them: what `tec_edge` computes, and a code for each mistake.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "all pointers are to values that live through the call, or are what the library must refuse"
)]

#[path = "../../tec-edge/tests/common/mod.rs"]
mod common;

use std::ffi::{CStr, c_char};
use std::mem::{MaybeUninit, size_of};
use std::ptr::{null, null_mut};

use common::{Bytes, Random, file, geometry, header, reference, reference_of, variants};
use tec_edge::format::{Header, checksum};
use tec_edge::{Encoder, OutputKind, Outputs};
use tec_edge_c::tec_code::*;
use tec_edge_c::*;

const ALL: u32 = 7;

/// A file, an image and the scratch memory for it.
struct Subject {
    file: Bytes,
    pixels: Vec<u8>,
    scratch: Bytes,
    encoder: tec_encoder,
}

impl Subject {
    fn new() -> Self {
        Self::of(&header(geometry()))
    }

    fn of(header: &Header) -> Self {
        let file = Bytes::new(&file(header, 3, false));
        let mut random = Random(5);
        let pixels = (0..geometry().image_len()).map(|_| random.next() as u8).collect();
        let mut encoder = tec_encoder {
            opaque: [!0; TEC_ENCODER_WORDS],
        };
        assert_eq!(
            unsafe { tec_encoder_open(&mut encoder, file.get().as_ptr(), file.get().len(), null_mut()) },
            TEC_OK
        );
        let outputs = if header.head.is_some() { ALL | 8 } else { ALL };
        let len = unsafe { tec_encoder_scratch_len(&encoder, null(), outputs) };
        Self {
            file,
            pixels,
            scratch: Bytes::filled(len, 0xA5),
            encoder,
        }
    }

    fn image(&self) -> tec_image {
        tec_pixels(self.pixels.as_ptr(), self.pixels.len())
    }

    fn encode(
        &mut self,
        options: *const tec_options,
        image: tec_image,
        outputs: *const tec_outputs,
    ) -> (tec_code, String) {
        let mut error = empty_error();
        let scratch = self.scratch.get_mut();
        let (scratch, len) = (scratch.as_mut_ptr(), scratch.len());
        let code = unsafe { tec_encode(&self.encoder, options, image, scratch, len, outputs, &mut error) };
        (code, text(&error, code))
    }
}

fn empty_error() -> tec_error {
    tec_error {
        code: -1,
        opaque: [!0; TEC_ERROR_WORDS],
    }
}

/// The error's sentence.
fn text(error: &tec_error, code: tec_code) -> String {
    assert_eq!(error.code, code as i32);
    let mut text = [b'?' as c_char; TEC_ERROR_TEXT_LEN];
    let len = unsafe { tec_error_text(error, text.as_mut_ptr(), text.len()) };
    let text = unsafe { CStr::from_ptr(text.as_ptr()) }.to_str().unwrap();
    assert_eq!(text.len(), len);
    text.into()
}

fn place(values: &mut [i16]) -> tec_values {
    tec_values {
        values: values.as_mut_ptr(),
        len: values.len(),
    }
}

const NOWHERE: tec_values = tec_values {
    values: null_mut(),
    len: 0,
};

const NO_OUTPUTS: tec_outputs = tec_outputs {
    class_token: NOWHERE,
    mean: NOWHERE,
    patches: NOWHERE,
    logits: NOWHERE,
};

#[test]
fn encodes_what_is_specified() {
    let mut subject = Subject::new();
    let expected = reference(&header(geometry()), subject.file.get(), &subject.pixels);
    let (mut class, mut mean, mut patches) = ([0; 12], [0; 12], [0; 9 * 12]);
    let outputs = tec_outputs {
        class_token: place(&mut class),
        mean: place(&mut mean),
        patches: place(&mut patches),
        ..NO_OUTPUTS
    };
    let (code, text) = subject.encode(null(), subject.image(), &outputs);
    assert_eq!((code, &text[..]), (TEC_OK, "no error"));
    assert_eq!(class[..], expected.class);
    assert_eq!(mean[..], expected.mean);
    assert_eq!(patches[..], expected.patches);
    // The same image, normalized.
    let normalized: Vec<f32> = subject
        .pixels
        .iter()
        .map(|&p| (f32::from(p) / 255.0 - 0.5) / 0.25)
        .collect();
    mean.fill(0);
    class.fill(1);
    let outputs = tec_outputs {
        mean: place(&mut mean),
        ..NO_OUTPUTS
    };
    let image = tec_normalized(normalized.as_ptr(), normalized.len());
    assert_eq!(subject.encode(null(), image, &outputs).0, TEC_OK);
    assert_eq!(mean[..], expected.mean);
    assert_eq!(class, [1; 12], "an output that was not asked for");
}

#[test]
fn logits_of_grey_pixels() {
    for header in variants(geometry()) {
        let mut subject = Subject::of(&header);
        let grey: Vec<u8> = subject.pixels.iter().step_by(3).copied().collect();
        let colors: Vec<u8> = grey.iter().flat_map(|&pixel| [pixel; 3]).collect();
        let expected = reference(&header, subject.file.get(), &colors);
        let mut logits = vec![0; header.classes().max(1)];
        let outputs = tec_outputs {
            logits: place(&mut logits),
            ..NO_OUTPUTS
        };
        let (code, text) = subject.encode(null(), tec_grey(grey.as_ptr(), grey.len()), &outputs);
        match header.head {
            Some(_) => assert_eq!((code, logits), (TEC_OK, expected.logits)),
            None => {
                assert_eq!(code, TEC_ERROR_NO_OUTPUT);
                assert!(text.contains("no class logits"), "{text}");
            }
        }
    }
}

#[test]
fn encodes_some_patches_by_several_workers() {
    let mut subject = Subject::new();
    let wanted = [7u32, 0, 4, 5];
    let expected = reference_of(&header(geometry()), subject.file.get(), &subject.pixels, &wanted);
    let options = tec_options {
        patches: wanted.as_ptr(),
        patches_len: wanted.len(),
        workers: 2,
    };
    let len = unsafe { tec_encoder_scratch_len(&subject.encoder, &options, 4) };
    subject.scratch = Bytes::filled(len, 1);
    let mut patches = [0; 4 * 12];
    let outputs = tec_outputs {
        patches: place(&mut patches),
        ..NO_OUTPUTS
    };
    assert_eq!(subject.encode(&options, subject.image(), &outputs).1, "no error");
    assert_eq!(patches[..], expected.patches);
    let mut outside = wanted;
    outside[2] = 9;
    let options = tec_options {
        patches: outside.as_ptr(),
        ..options
    };
    let (code, text) = subject.encode(&options, subject.image(), &outputs);
    assert_eq!(code, TEC_ERROR_PATCH);
    assert_eq!(text, "there is no patch 9: the image has 9, counted from 0");
}

#[test]
fn says_what_the_encoder_is() {
    let subject = Subject::new();
    let rust = Encoder::from_bytes(subject.file.get()).unwrap();
    let mut info = MaybeUninit::uninit();
    let info = unsafe {
        assert_eq!(
            tec_encoder_info(&subject.encoder, info.as_mut_ptr(), null_mut()),
            TEC_OK
        );
        info.assume_init()
    };
    let expected = tec_info {
        image_size: 12,
        patch_size: 4,
        channels: 3,
        dim: 12,
        depth: 2,
        heads: 3,
        hidden: 22,
        patches: 9,
        image_len: 432,
        classes: 0,
        fc_norm: 0,
        embedding: 2,
        mean: [0.5; 3],
        std: [0.25; 3],
    };
    assert_eq!(info, expected);
    // The header of the common files says 11, 13 and 12 bits.
    for (kind, rust_kind, len, shift) in [
        (1, OutputKind::Class, 12, 11),
        (2, OutputKind::Mean, 12, 13),
        (4, OutputKind::Patches, 108, 12),
    ] {
        let mut output = tec_output_info {
            len: 0,
            shift: 0,
            step: 0.0,
        };
        assert_eq!(
            unsafe { tec_encoder_output(&subject.encoder, kind, &mut output, null_mut()) },
            TEC_OK
        );
        assert_eq!(
            (output.len, output.shift, output.step),
            (len, shift, 0.5f32.powi(shift))
        );
        let (values, mut floats, mut expected) = ([-32768, 0, 1, 32767], [9.0; 4], [9.0; 4]);
        let code = unsafe {
            tec_to_float(
                &subject.encoder,
                kind,
                values.as_ptr(),
                4,
                floats.as_mut_ptr(),
                null_mut(),
            )
        };
        assert_eq!(code, TEC_OK);
        rust.to_f32(rust_kind, &values, &mut expected);
        assert_eq!(floats, expected);
        assert_eq!(floats[2], output.step);
    }
    let mut text = [1 as c_char; 32];
    unsafe {
        assert_eq!(tec_encoder_name(&subject.encoder, text.as_mut_ptr(), text.len()), 5);
        assert_eq!(CStr::from_ptr(text.as_ptr()).to_str(), Ok("tin\u{e9}"));
        tec_encoder_back_end(&subject.encoder, text.as_mut_ptr(), text.len());
        assert_eq!(CStr::from_ptr(text.as_ptr()).to_str(), Ok(rust.back_end().name()));
        assert_eq!(CStr::from_ptr(tec_version()).to_str(), Ok(env!("CARGO_PKG_VERSION")));
        assert_eq!(
            tec_encoder_scratch_len(&subject.encoder, null(), ALL),
            rust.scratch_len(Outputs::ALL)
        );
        assert_eq!(
            tec_encoder_scratch_len(&subject.encoder, null(), 4),
            rust.scratch_len(Outputs::PATCHES)
        );
        let fast = rust.fast_scratch_len(&Default::default(), Outputs::MEAN);
        assert_eq!(tec_encoder_fast_scratch_len(&subject.encoder, null(), 2), fast);
        assert_eq!(
            tec_encoder_scratch_len(&subject.encoder, null(), 16),
            0,
            "there is no such output"
        );
    }
}

#[test]
fn texts_are_cut_off_where_they_do_not_fit() {
    let mut error = empty_error();
    let code = unsafe { tec_encoder_info(null(), null_mut(), &mut error) };
    assert_eq!(text(&error, code), "encoder is NULL");
    let mut short = [b'?' as c_char; 8];
    unsafe {
        assert_eq!(tec_error_text(&error, short.as_mut_ptr(), 5), 15);
        assert_eq!(short, *b"enco\0???".map(|byte| byte as c_char).as_slice());
        assert_eq!(tec_error_text(&error, short.as_mut_ptr(), 0), 15);
        assert_eq!(tec_error_text(&error, null_mut(), 8), 15);
        assert_eq!(short[0], b'e' as c_char);
        // Memory that no function has written.
        assert_eq!(tec_error_text(&empty_error(), null_mut(), 0), "no error".len());
        assert_eq!(tec_error_text(null(), null_mut(), 0), "error is NULL".len());
    }
}

#[test]
fn wrong_files_have_codes() {
    let good = file(&header(geometry()), 3, false);
    // Each change, with a right checksum unless that is the change.
    let changed = |at: usize, value: u8, sum: bool| {
        let mut bytes = good.clone();
        bytes[at] = value;
        if sum {
            let sum = checksum(&bytes);
            bytes[16..20].copy_from_slice(&sum.to_le_bytes());
        }
        bytes
    };
    let cases: [(tec_code, Vec<u8>, &str); 8] = [
        (TEC_ERROR_NOT_AN_ENCODER, changed(0, b'X', true), "not an encoder file"),
        (TEC_ERROR_NOT_AN_ENCODER, vec![], "not an encoder file"),
        (TEC_ERROR_VERSION, changed(8, 99, true), "version 99"),
        (
            TEC_ERROR_LENGTH,
            good[..good.len() - 1].to_vec(),
            "encoder file's bytes: expected",
        ),
        (TEC_ERROR_CHECKSUM, changed(200, !good[200], false), "damaged"),
        (TEC_ERROR_HEADER, changed(44, 5, true), "heads"),
        (TEC_ERROR_UNSUPPORTED, changed(56, 2, true), "not support"),
        (TEC_ERROR_SECTION, changed(144, 77, true), "section"),
    ];
    for (expected, bytes, words) in cases {
        let bytes = Bytes::new(&bytes);
        let mut encoder = tec_encoder {
            opaque: [0; TEC_ENCODER_WORDS],
        };
        let mut error = empty_error();
        let pointer = if bytes.get().is_empty() {
            [0u128; 1].as_ptr().cast()
        } else {
            bytes.get().as_ptr()
        };
        let code = unsafe { tec_encoder_open(&mut encoder, pointer, bytes.get().len(), &mut error) };
        let text = text(&error, code);
        assert_eq!(code, expected, "{text}");
        assert!(text.contains(words), "{text}");
        assert_eq!(unsafe { tec_encoder_scratch_len(&encoder, null(), ALL) }, 0);
    }
    // A failure closes an encoder that was open.
    let mut subject = Subject::new();
    unsafe {
        assert_eq!(
            tec_encoder_open(&mut subject.encoder, [0u128].as_ptr().cast(), 16, null_mut()),
            TEC_ERROR_NOT_AN_ENCODER
        );
        assert_eq!(
            tec_encoder_info(&subject.encoder, null_mut(), null_mut()),
            TEC_ERROR_NOT_OPEN
        );
    }
}

#[test]
fn wrong_pointers_have_codes() {
    let mut subject = Subject::new();
    let mut mean = [7; 12];
    let outputs = tec_outputs {
        mean: place(&mut mean),
        ..NO_OUTPUTS
    };
    let image = subject.image();
    let (pixels, len) = (subject.pixels.as_ptr(), subject.pixels.len());
    let list = [0u32; 3];
    let options = |patches, patches_len| tec_options {
        patches,
        patches_len,
        workers: 0,
    };
    let file = subject.file.get().as_ptr();
    let scratch = subject.scratch.get_mut().as_mut_ptr();
    let with_mean = |mean| tec_outputs { mean, ..NO_OUTPUTS };
    let words = |values: *const u8, len| tec_values {
        values: values.cast_mut().cast(),
        len,
    };
    let cases = [
        (
            tec_pixels(null(), len),
            options(null(), 0),
            outputs,
            TEC_ERROR_NULL,
            "image is NULL",
        ),
        (
            image,
            options(null(), 3),
            outputs,
            TEC_ERROR_NULL,
            "list of patches is NULL",
        ),
        (
            image,
            options(list.as_ptr(), 0),
            outputs,
            TEC_ERROR_LENGTH,
            "patches to encode: expected 1, got 0",
        ),
        (
            image,
            options(null(), 0),
            with_mean(words(null(), 12)),
            TEC_ERROR_NULL,
            "mean output is NULL",
        ),
        (
            image,
            options(null(), 0),
            with_mean(tec_values {
                len: 11,
                ..outputs.mean
            }),
            TEC_ERROR_LENGTH,
            "mean output's values: expected 12, got 11",
        ),
        (
            tec_pixels(pixels, len - 1),
            options(null(), 0),
            outputs,
            TEC_ERROR_LENGTH,
            "image's values: expected 432, got 431",
        ),
        (
            tec_pixels(pixels, usize::MAX),
            options(null(), 0),
            outputs,
            TEC_ERROR_LENGTH,
            "no memory holds",
        ),
        (
            tec_image { kind: 9, ..image },
            options(null(), 0),
            outputs,
            TEC_ERROR_KIND,
            "there is no kind 9 of image",
        ),
        (
            tec_normalized(scratch.wrapping_add(2).cast(), 4),
            options(null(), 0),
            outputs,
            TEC_ERROR_MISALIGNED,
            "image starts 2 bytes past a 4-byte boundary",
        ),
        (
            image,
            options(scratch.wrapping_add(1).cast(), 1),
            outputs,
            TEC_ERROR_MISALIGNED,
            "list of patches starts 1 bytes past a 4-byte",
        ),
        (
            image,
            options(null(), 0),
            with_mean(words(scratch.wrapping_add(1), 12)),
            TEC_ERROR_MISALIGNED,
            "mean output starts 1 bytes past a 2-byte",
        ),
        (
            image,
            options(null(), 0),
            with_mean(words(scratch.wrapping_add(32), 12)),
            TEC_ERROR_OVERLAP,
            "mean output and scratch memory overlap",
        ),
        (
            image,
            options(null(), 0),
            with_mean(words(file, 12)),
            TEC_ERROR_OVERLAP,
            "mean output and encoder file overlap",
        ),
        (
            tec_pixels(scratch, len),
            options(null(), 0),
            outputs,
            TEC_ERROR_OVERLAP,
            "scratch memory and image overlap",
        ),
        (
            image,
            options(null(), 0),
            tec_outputs {
                class_token: outputs.mean,
                ..outputs
            },
            TEC_ERROR_OVERLAP,
            "mean output and class output overlap",
        ),
    ];
    for (image, options, outputs, expected, words) in cases {
        let (code, text) = subject.encode(&options, image, &outputs);
        assert_eq!(code, expected, "{text}");
        assert!(text.contains(words), "{text}, not {words}");
    }
    assert_eq!(subject.encode(null(), image, null()).1, "outputs is NULL");
    assert_eq!(
        subject.encode(null::<u8>().wrapping_add(1).cast(), image, &outputs).0,
        TEC_ERROR_MISALIGNED
    );
    let mut values = vec![0.0f32; len];
    values[17] = f32::NAN;
    let (code, text) = subject.encode(null(), tec_normalized(values.as_ptr(), len), &outputs);
    assert_eq!((code, text.contains("NaN")), (TEC_ERROR_NAN, true), "{text}");
    assert_eq!(mean, [7; 12], "a call that fails writes no output");
    assert_eq!(subject.encode(null(), image, &outputs).0, TEC_OK);
}

#[test]
fn wrong_memory_has_codes() {
    let subject = Subject::new();
    let mut error = empty_error();
    let image = subject.image();
    let needed = subject.scratch.get().len();
    let mut memory = Bytes::filled(needed, 0);
    let scratch = memory.get_mut().as_mut_ptr();
    let mut mean = [0; 12];
    let outputs = tec_outputs {
        mean: place(&mut mean),
        ..NO_OUTPUTS
    };
    unsafe {
        let exact = tec_encoder_scratch_len(&subject.encoder, null(), 2);
        let code = tec_encode(
            &subject.encoder,
            null(),
            image,
            scratch,
            exact - 1,
            &outputs,
            &mut error,
        );
        assert_eq!(code, TEC_ERROR_LENGTH);
        let expected = format!("scratch memory's bytes: expected {exact}, got {}", exact - 1);
        assert_eq!(text(&error, code), expected);
        let code = tec_encode(
            &subject.encoder,
            null(),
            image,
            scratch.add(4),
            exact - 4,
            &outputs,
            &mut error,
        );
        assert_eq!(code, TEC_ERROR_MISALIGNED);
        assert!(text(&error, code).starts_with("scratch memory starts 4 bytes past a 16-byte boundary: align it"));
        let code = tec_encode(&subject.encoder, null(), image, null_mut(), exact, &outputs, &mut error);
        assert_eq!(
            (code, &text(&error, code)[..]),
            (TEC_ERROR_NULL, "scratch memory is NULL")
        );
        assert_eq!(
            tec_encode(null(), null(), image, scratch, exact, &outputs, &mut error),
            TEC_ERROR_NULL
        );
        let closed = tec_encoder {
            opaque: [0; TEC_ENCODER_WORDS],
        };
        let code = tec_encode(&closed, null(), image, scratch, exact, &outputs, &mut error);
        assert_eq!(code, TEC_ERROR_NOT_OPEN);
        assert!(text(&error, code).contains("tec_encoder_open"));

        let file = subject.file.get();
        let mut encoder = closed;
        assert_eq!(
            tec_encoder_open(null_mut(), file.as_ptr(), file.len(), &mut error),
            TEC_ERROR_NULL
        );
        assert_eq!(
            tec_encoder_open(&mut encoder, null(), file.len(), &mut error),
            TEC_ERROR_NULL
        );
        let code = tec_encoder_open(&mut encoder, file.as_ptr().add(8), file.len() - 8, &mut error);
        assert_eq!(code, TEC_ERROR_MISALIGNED);
        assert!(text(&error, code).starts_with("encoder file starts 8 bytes past a 16-byte boundary"));
        let within = (&raw mut encoder).cast::<u8>();
        assert_eq!(
            tec_encoder_open(&mut encoder, within, 16, &mut error),
            TEC_ERROR_OVERLAP
        );

        let mut floats = [0.0; 2];
        let info = subject.encoder;
        assert_eq!(
            tec_to_float(&info, 2, mean.as_ptr(), 2, null_mut(), &mut error),
            TEC_ERROR_NULL
        );
        assert_eq!(
            tec_to_float(&info, 3, mean.as_ptr(), 2, floats.as_mut_ptr(), &mut error),
            TEC_ERROR_KIND
        );
        let same = floats.as_ptr().cast();
        assert_eq!(
            tec_to_float(&info, 2, same, 2, floats.as_mut_ptr(), &mut error),
            TEC_ERROR_OVERLAP
        );
        assert_eq!(tec_encoder_output(&info, 2, null_mut(), &mut error), TEC_ERROR_NULL);
        assert_eq!(tec_encoder_info(&info, null_mut(), &mut error), TEC_ERROR_NULL);
    }
}

/// The header promises it to static memory of C programs.
#[test]
fn types_have_the_sizes_of_the_header() {
    assert_eq!(size_of::<tec_encoder>(), 8 * TEC_ENCODER_WORDS);
    assert_eq!(size_of::<tec_error>(), 8 + 8 * TEC_ERROR_WORDS);
    assert_eq!(
        size_of::<tec_outputs>(),
        4 * (size_of::<*mut i16>() + size_of::<usize>())
    );
}
