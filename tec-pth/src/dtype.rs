//! Types of stored numbers.

use half::{bf16, f16};

/// The type of a tensor's numbers, as far as it matters: floats are read, others are only listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats (IEEE).
    F16,
    /// 16-bit floats (bfloat16).
    BF16,
    /// 64-bit floats.
    F64,
    /// Integers, booleans, complex and quantized numbers.
    Other,
}

impl DType {
    /// Of a storage class (`FloatStorage`) or of a `torch` attribute (`float32`).
    pub(crate) fn of(name: &str) -> Self {
        match name {
            "FloatStorage" | "float32" | "float" => Self::F32,
            "HalfStorage" | "float16" | "half" => Self::F16,
            "BFloat16Storage" | "bfloat16" => Self::BF16,
            "DoubleStorage" | "float64" | "double" => Self::F64,
            _ => Self::Other,
        }
    }

    /// Whether values can be read.
    pub fn is_float(self) -> bool {
        self != Self::Other
    }

    /// Bytes of one number; of [`DType::Other`] none are read.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F64 => 8,
            Self::Other => 0,
        }
    }

    /// Little-endian numbers, one after the other, as f32.
    pub(crate) fn to_f32(self, bytes: &[u8]) -> Vec<f32> {
        fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.as_chunks::<N>().0.iter().map(|chunk| value(*chunk)).collect()
        }
        match self {
            Self::F32 => each(bytes, f32::from_le_bytes),
            Self::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Self::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Self::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
            Self::Other => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_reads_its_numbers() {
        for (name, dtype, bytes) in [
            ("FloatStorage", DType::F32, &[0, 0, 0x20, 0xc0][..]),
            ("HalfStorage", DType::F16, &[0, 0xc1]),
            ("BFloat16Storage", DType::BF16, &[0x20, 0xc0]),
            ("bfloat16", DType::BF16, &[0x20, 0xc0]),
            ("DoubleStorage", DType::F64, &[0, 0, 0, 0, 0, 0, 4, 0xc0]),
        ] {
            assert_eq!(DType::of(name), dtype);
            assert_eq!(dtype.size(), bytes.len());
            assert_eq!(dtype.to_f32(bytes), [-2.5], "{name}");
        }
        for other in ["LongStorage", "BoolStorage", "QInt8Storage", "", "complex64"] {
            assert_eq!(DType::of(other), DType::Other);
        }
    }
}
