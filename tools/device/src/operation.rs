//! The operations a device knows, by number.

use core::fmt::Write;

use tec_edge::{BackEnd, Trace};

use crate::refusal::{Refusal, Status};
use crate::tensors::{ALIGNMENT, HEAD_LEN, Results, Tensors, head, write_head};
use crate::{encoder, float, integer};

macro_rules! operations {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $text:literal;)*) => {
        /// What a device can be asked to compute: `arguments -> results`. Sizes are u32; several sizes are one tensor.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Operation { $($(#[doc = $doc])+ $name = $number,)* }

        impl Operation {
            /// All operations.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The operation of a number, if it is one.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// Its name in reports.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

operations! {
    /// seed u64 `[1]`, (epoch, sample, stream, count) -> words u32, uniform f32.
    Noise = 1, "noise";
    /// ratio f64 `[1]`, (patches) -> visible patches u32 `[1]`.
    Kept = 2, "kept";
    /// noise f32 `[L]`, (keep) -> order u32, restore u32, removed f32.
    Mask = 3, "mask";
    /// (dim, grid) -> table f32 `[1 + grid², dim]`.
    SinCos = 4, "sin-cos positions";
    /// table f32, (from grid, to grid, dim, 1 for antialias) -> table f32.
    Resize = 5, "bicubic resize";
    /// features f32 `[L, T]`, (L, T) -> normalized f32.
    NormalizeFeatures = 6, "feature normalization";
    /// class logits f32 `[H, L]`, (H, L, K) -> index u32 `[K]`.
    RankQueries = 7, "query ranking";
    /// logits f32 `[H, 1 + L, 1 + L]`, (H, L), index u32 `[K]` -> picked f32.
    TargetRows = 8, "target rows";
    /// picked f32, (L), temperature f32 `[1]` -> targets f32.
    TemperedTarget = 9, "tempered target";
    /// prediction, normalized target f32 `[L, T]`, removed f32 `[L]`, (T), scale f32 `[1]` -> (sum, removed) f32, gradient f32.
    FeatureLoss = 10, "feature loss";
    /// prediction, target f32 `[rows, L]`, (L), scale f32 `[1]` -> losses f32 `[rows]`, gradient f32.
    RelationLoss = 11, "relation loss";
    /// token f32 `[D]`, fc1 weight, bias, fc2 weight, bias f32 -> token f32 `[D]`.
    InputAdapter = 12, "input adapter";
    /// levels f32 `[rows, D·depth]`, before weight, bias, after weight, bias f32; six tensors a group -> adapted f32 `[rows, D]`.
    EncoderAdapter = 13, "encoder adapter";
    /// x f32 `[rows, D]`, weight, bias f32 `[D]`, epsilon f32 `[1]`, gradient f32 `[rows, D]` -> out, gradients of x, weight,
    /// bias f32.
    LayerNorm = 14, "layer norm";
    /// x f32 `[rows, L]`, (L), scale f32 `[1]`, gradient f32 `[rows, L]` -> softmax, gradient of x, log of the sum f32.
    Softmax = 15, "softmax";
    /// x, gradient f32 -> GELU, its gradient, exponential, error function f32.
    Gelu = 16, "gelu";
    /// x f32 `[rows, K]`, (K), weight f32 `[O, K]`, bias f32 `[O]`, gradient f32 `[rows, O]` -> out f32 `[rows, O]`, gradients of
    /// x, weight, bias f32.
    Linear = 17, "linear";

    /// product i64, shift u32 -> rounded i64.
    IntegerRound = 32, "integer round";
    /// value, multiplier i32, shift u32 -> scaled i64, limited to i8, to i16.
    IntegerScale = 33, "integer scale";
    /// value u64 -> root u32.
    IntegerSqrt = 34, "integer sqrt";
    /// divisor u32 -> mantissa i64, shift u32.
    IntegerReciprocal = 35, "integer reciprocal";
    /// tokens i8 `[T, K]`, weight i8 `[O, K]`, bias, multiplier i32 `[O]`, (shift, K) -> i8 `[T, O]`, i16 `[T, O]`.
    IntegerLinear = 36, "integer linear";
    /// tokens i16 `[T, D]`, epsilon u64 `[1]`, multiplier, offset i32 `[D]`, (bits) -> normalized i32, affine i64, i8 `[T, D]`.
    IntegerNorm = 37, "integer norm";
    /// scores i32 `[T, N]`, multiplier i32 `[1]`, (shift), values i8 `[W, N]`, multiplier i32 `[W]`, (shift, N) -> weights i16
    /// `[T, N]`, sum u32 `[T]`, mean i32, out i8 `[T, W]`.
    IntegerSoftmax = 38, "integer softmax";
    /// table i8 `[256]`, x i8 -> y i8.
    IntegerGelu = 39, "integer gelu";
    /// value f32, (std, mean) f32 `[2]` -> pixel i16, −1 for a value that is none.
    IntegerPixel = 40, "integer pixel";
    /// q i8 `[outputs, inputs]`, scales u8 `[outputs, groups]`, (group, inputs) -> weights i8 `[outputs, inputs]`, panels u8.
    IntegerInt4 = 41, "4-bit weights";

    /// file u8, image u8 or f32 -> class, mean, patches, logits i16 (empty without a head); class, mean and logits as f32.
    Encode = 64, "encode";
    /// As `Encode`; what is computed on the way goes ahead in parts.
    Trace = 65, "trace";
}

/// Answers the request of `request_len` bytes at the start of `memory`, which begins at a 16-byte boundary. Returns where in
/// `memory` the answer's payload lies. `trace` is shown what [`Operation::Trace`] computes on the way.
pub fn answer(memory: &mut [u8], request_len: usize, trace: &mut impl Trace) -> core::ops::Range<usize> {
    answer_by(BackEnd::best(), memory, request_len, trace)
}

/// As [`answer`], by a back end that is not the processor's best.
pub fn answer_by(
    back_end: BackEnd,
    memory: &mut [u8],
    request_len: usize,
    trace: &mut impl Trace,
) -> core::ops::Range<usize> {
    let end = request_len.min(memory.len());
    let start = end.next_multiple_of(ALIGNMENT).min(memory.len());
    let (request, rest) = memory.split_at_mut(start);
    let request = request.get(..request_len).unwrap_or(request);
    let (what, number) = head(request).unwrap_or_default();
    let Some((place, results)) = rest.split_first_chunk_mut::<HEAD_LEN>() else {
        return start..start;
    };
    let mut out = Results::new(results);
    let outcome = match Operation::from_number(what) {
        Some(operation) => run(back_end, operation, Tensors::new(request), &mut out, trace),
        None => Err(Refusal::Unknown),
    };
    let mut len = out.written();
    let status = match outcome {
        Ok(()) => Status::Done,
        Err(refusal) => {
            len = explain(&refusal, results).unwrap_or(0);
            refusal.status()
        }
    };
    *place = write_head(status as u16, number);
    start..start + HEAD_LEN + len
}

fn run(
    back_end: BackEnd,
    operation: Operation,
    arguments: Tensors<'_>,
    results: &mut Results<'_>,
    trace: &mut impl Trace,
) -> Result<(), Refusal> {
    match operation {
        Operation::Encode => encoder::encode(back_end, arguments, results),
        Operation::Trace => encoder::trace(back_end, arguments, results, trace),
        _ if operation as u16 >= Operation::IntegerRound as u16 => {
            integer::run(back_end, operation, arguments, results)
        }
        _ => float::run(operation, arguments, results),
    }
}

/// Writes a refusal's text as the only result; returns its bytes.
fn explain(refusal: &Refusal, memory: &mut [u8]) -> Result<usize, Refusal> {
    struct Text {
        bytes: [u8; 200],
        len: usize,
    }
    impl Write for Text {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            let rest = self.bytes.get_mut(self.len..).unwrap_or(&mut []);
            for (slot, byte) in rest.iter_mut().zip(text.bytes()) {
                *slot = byte;
                self.len += 1;
            }
            Ok(())
        }
    }
    let mut text = Text {
        bytes: [0; 200],
        len: 0,
    };
    // What does not fit is cut off.
    let _ = write!(text, "{refusal}");
    let mut results = Results::new(memory);
    results.put(text.bytes.get(..text.len).unwrap_or(&[]))?;
    Ok(results.written())
}
