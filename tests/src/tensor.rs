//! Tensors of any type, and how many of their bits differ.

use tec_device::tensors::Kind;

macro_rules! data {
    ($($variant:ident($type:ty) = $kind:ident),* $(,)?) => {
        /// The elements of a tensor.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs, reason = "the names say it")]
        pub enum Data { $($variant(Vec<$type>),)* }

        impl Data {
            /// Elements.
            pub fn len(&self) -> usize {
                match self { $(Self::$variant(values) => values.len(),)* }
            }

            /// The type's number on the wire.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$variant(_) => Kind::$kind,)* }
            }

            /// The elements as little-endian bytes.
            pub fn to_bytes(&self) -> Vec<u8> {
                match self { $(Self::$variant(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),)* }
            }

            /// Elements from little-endian bytes; a rest that is no whole element is left out.
            pub fn from_bytes(kind: Kind, bytes: &[u8]) -> Self {
                match kind {
                    $(Kind::$kind => Self::$variant(
                        bytes.as_chunks::<{ size_of::<$type>() }>().0.iter().map(|b| <$type>::from_le_bytes(*b)).collect(),
                    ),)*
                }
            }

            /// `len` zeros.
            pub fn zeros(kind: Kind, len: usize) -> Self {
                match kind { $(Kind::$kind => Self::$variant(vec![<$type>::default(); len]),)* }
            }

            /// Puts `part` in at `offset`; false where it has another type or does not fit.
            pub fn place(&mut self, offset: usize, part: &Self) -> bool {
                match (self, part) {
                    $((Self::$variant(all), Self::$variant(part)) => {
                        let slot = offset.checked_add(part.len()).and_then(|end| all.get_mut(offset..end));
                        slot.map(|slot| slot.copy_from_slice(part)).is_some()
                    })*
                    _ => false,
                }
            }
        }

        $(impl From<&[$type]> for Data {
            fn from(values: &[$type]) -> Self {
                Self::$variant(values.to_vec())
            }
        }

        impl From<Vec<$type>> for Data {
            fn from(values: Vec<$type>) -> Self {
                Self::$variant(values)
            }
        })*
    };
}
data! {
    U8(u8) = U8, I8(i8) = I8, I16(i16) = I16, I32(i32) = I32, U32(u32) = U32, I64(i64) = I64, U64(u64) = U64,
    F32(f32) = F32, F64(f64) = F64,
}

impl Data {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bits differ, and the index of the first element that does. A NaN equals any NaN. Tensors of different types
    /// or lengths differ in all bits of the larger.
    pub fn difference(&self, other: &Self) -> (u64, Option<usize>) {
        if self.kind() != other.kind() || self.len() != other.len() {
            let bits = |data: &Self| 8 * (data.len() * data.kind().size()) as u64;
            return (bits(self).max(bits(other)).max(1), Some(0));
        }
        match (self, other) {
            (Self::F32(a), Self::F32(b)) => {
                let nan = |v: &f32| if v.is_nan() { f32::NAN } else { *v }.to_bits();
                count(a, b, |a, b| (nan(a) ^ nan(b)).count_ones())
            }
            (Self::F64(a), Self::F64(b)) => {
                let nan = |v: &f64| if v.is_nan() { f64::NAN } else { *v }.to_bits();
                count(a, b, |a, b| (nan(a) ^ nan(b)).count_ones())
            }
            (a, b) => {
                let size = a.kind().size();
                let (bits, first) = count(&a.to_bytes(), &b.to_bytes(), |a, b| (a ^ b).count_ones());
                (bits, first.map(|byte| byte / size))
            }
        }
    }

    /// One element as text.
    pub fn show(&self, index: usize) -> String {
        fn text<T: std::fmt::Debug>(values: &[T], index: usize) -> String {
            values.get(index).map_or_else(|| "nothing".into(), |v| format!("{v:?}"))
        }
        match self {
            Self::U8(v) => text(v, index),
            Self::I8(v) => text(v, index),
            Self::I16(v) => text(v, index),
            Self::I32(v) => text(v, index),
            Self::U32(v) => text(v, index),
            Self::I64(v) => text(v, index),
            Self::U64(v) => text(v, index),
            Self::F32(v) => text(v, index),
            Self::F64(v) => text(v, index),
        }
    }
}

fn count<T>(a: &[T], b: &[T], bits: impl Fn(&T, &T) -> u32) -> (u64, Option<usize>) {
    let (mut total, mut first) = (0, None);
    for (index, (a, b)) in a.iter().zip(b).enumerate() {
        let differing = bits(a, b);
        if differing > 0 {
            total += u64::from(differing);
            first = first.or(Some(index));
        }
    }
    (total, first)
}

/// A tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Sizes of the axes, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub data: Data,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differing_bits() {
        let data = |values: &[f32]| Data::from(values);
        assert_eq!(data(&[1.0, f32::NAN]).difference(&data(&[1.0, -f32::NAN])), (0, None));
        assert_eq!(data(&[1.0, 0.0]).difference(&data(&[1.0, -0.0])), (1, Some(1)));
        assert_eq!(
            Data::from(vec![1i16, 2, 3]).difference(&Data::from(vec![1i16, 2, 0x100])),
            (3, Some(2))
        );
        assert_eq!(Data::from(vec![1u8]).difference(&Data::from(vec![1i8])), (8, Some(0)));
        assert_eq!(
            Data::from(vec![1u8]).difference(&Data::from(Vec::<u8>::new())),
            (8, Some(0))
        );
    }

    #[test]
    fn bytes_and_back() {
        for data in [
            Data::from(vec![1i64, -2]),
            Data::from(vec![-1i8, 5]),
            Data::from(vec![1.5f32]),
        ] {
            assert_eq!(Data::from_bytes(data.kind(), &data.to_bytes()), data);
        }
        let mut zeros = Data::zeros(Kind::I16, 4);
        assert!(zeros.place(2, &Data::from(vec![7i16, 8])));
        assert!(!zeros.place(3, &Data::from(vec![7i16, 8])));
        assert!(!zeros.place(0, &Data::from(vec![7i8])));
        assert_eq!(zeros, Data::from(vec![0i16, 0, 7, 8]));
    }
}
