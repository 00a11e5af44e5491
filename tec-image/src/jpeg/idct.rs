//! The inverse cosine transform of a block: libjpeg's accurate integer one ("islow"), whose bits PIL shows.

/// Eight lanes: a column each in the first pass, a row each in the second.
type Lanes = [i32; 8];

const CONST_BITS: i32 = 13;
const PASS1_BITS: i32 = 2;
/// Descaling after the first and the second pass.
pub(super) const FIRST: i32 = CONST_BITS - PASS1_BITS;
pub(super) const SECOND: i32 = CONST_BITS + PASS1_BITS + 3;

/// Cosines in 13 bits, named by their decimals.
pub(super) const F_0_298: i32 = 2446;
pub(super) const F_0_390: i32 = 3196;
pub(super) const F_0_541: i32 = 4433;
pub(super) const F_0_765: i32 = 6270;
pub(super) const F_0_899: i32 = 7373;
pub(super) const F_1_175: i32 = 9633;
pub(super) const F_1_501: i32 = 12299;
pub(super) const F_1_847: i32 = 15137;
pub(super) const F_1_961: i32 = 16069;
pub(super) const F_2_053: i32 = 16819;
pub(super) const F_2_562: i32 = 20995;
pub(super) const F_3_072: i32 = 25172;

/// The 8 × 8 samples of a block from its coefficients and their steps, both in rows.
pub(super) fn block(coefficients: &[i16; 64], steps: &[i32; 64]) -> [u8; 64] {
    let mut rows: [Lanes; 8] = std::array::from_fn(|row| {
        std::array::from_fn(|column| i32::from(coefficients[8 * row + column]).wrapping_mul(steps[8 * row + column]))
    });
    pass(&mut rows, FIRST);
    let mut columns: [Lanes; 8] = std::array::from_fn(|column| std::array::from_fn(|row| rows[row][column]));
    pass(&mut columns, SECOND);
    std::array::from_fn(|at| (columns[at % 8][at / 8].wrapping_add(128)).clamp(0, 255) as u8)
}

/// The sample that fills a block whose first coefficient alone is not 0.
#[inline(always)]
pub(super) fn flat(coefficient: i16, step: i32) -> u8 {
    let first = i32::from(coefficient).wrapping_mul(step) << PASS1_BITS;
    ((first.wrapping_add(1 << (PASS1_BITS + 2)) >> (PASS1_BITS + 3)) + 128).clamp(0, 255) as u8
}

/// One dimension, in place, each lane for itself.
fn pass(x: &mut [Lanes; 8], shift: i32) {
    (0..8).for_each(|lane| {
        let [x0, x1, x2, x3, x4, x5, x6, x7] = std::array::from_fn(|at| Wide(x[at][lane]));
        let z1 = (x2 + x6) * F_0_541;
        let (even2, even3) = (z1 - x6 * F_1_847, z1 + x2 * F_0_765);
        let (even0, even1) = ((x0 + x4) << CONST_BITS, (x0 - x4) << CONST_BITS);
        let sums = [even0 + even3, even1 + even2, even1 - even2, even0 - even3];

        let z5 = (x7 + x3 + x5 + x1) * F_1_175;
        let (z1, z2) = (x7 + x1, x5 + x3);
        let (z3, z4) = (z5 - (x7 + x3) * F_1_961, z5 - (x5 + x1) * F_0_390);
        let odd = [
            x1 * F_1_501 - z1 * F_0_899 + z4,
            x3 * F_3_072 - z2 * F_2_562 + z3,
            x5 * F_2_053 - z2 * F_2_562 + z4,
            x7 * F_0_298 - z1 * F_0_899 + z3,
        ];
        for at in 0..4 {
            x[at][lane] = (sums[at] + odd[at]).descale(shift);
            x[7 - at][lane] = (sums[at] - odd[at]).descale(shift);
        }
    });
}

/// 32 bits that wrap around, as damaged coefficients make them.
#[derive(Clone, Copy)]
struct Wide(i32);

impl Wide {
    fn descale(self, shift: i32) -> i32 {
        self.0.wrapping_add(1 << (shift - 1)) >> shift
    }
}

impl std::ops::Add for Wide {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }
}

impl std::ops::Sub for Wide {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0))
    }
}

impl std::ops::Mul<i32> for Wide {
    type Output = Self;
    fn mul(self, factor: i32) -> Self {
        Self(self.0.wrapping_mul(factor))
    }
}

impl std::ops::Shl<i32> for Wide {
    type Output = Self;
    fn shl(self, bits: i32) -> Self {
        Self(self.0 << bits)
    }
}
