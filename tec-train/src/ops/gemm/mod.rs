//! Matrix products on strided slices.
//!
//! Large ones run on kernels of our own where the CPU has AVX2 and FMA ([`avx2`]); the small ones of attention heads, and all
//! on other CPUs, in the `gemm` crate.

#[cfg(target_arch = "x86_64")]
mod avx2;

use std::mem::MaybeUninit;

use candle_core::{Result, bail};

/// A matrix read from a slice; either axis may be the contiguous one.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// The matrix `[rows, columns]` at the start of `data`, rows `row_stride` elements apart.
    pub fn new(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Result<Self> {
        check(data.len(), rows, columns, row_stride)?;
        Ok(Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride: 1,
        })
    }

    /// The transposed matrix, without moving a value.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// What a product is added to.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// Nothing.
    Zero,
    /// One value a column, the same in every row.
    Bias(&'a [f32]),
    /// What is there.
    Add,
    /// Rows side by side as those of the result, and one value a column.
    Rows(&'a [f32], &'a [f32]),
}

impl Start<'_> {
    /// The same from column `columns` on.
    fn skip(self, columns: usize) -> Self {
        match self {
            Self::Bias(bias) => Self::Bias(&bias[columns..]),
            Self::Rows(rows, bias) => Self::Rows(&rows[columns..], &bias[columns..]),
            other => other,
        }
    }

    /// The same from another row on, which begins at element `offset`.
    fn skip_rows(self, offset: usize) -> Self {
        match self {
            Self::Rows(rows, bias) => Self::Rows(&rows[offset..], bias),
            other => other,
        }
    }
}

/// A matrix written to a slice, its rows contiguous.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// The matrix `[rows, columns]` at the start of `data`, rows `row_stride` elements apart.
    pub fn new(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Result<Self> {
        check(data.len(), rows, columns, row_stride)?;
        Ok(Self {
            data,
            rows,
            columns,
            row_stride,
        })
    }

    /// `self = scale * a b`, by the calling thread.
    pub fn set_product(self, scale: f32, a: Matrix, b: Matrix) -> Result<()> {
        fits(self.rows, self.columns, a, b)?;
        // SAFETY: both types have the same layout, and `crate_product` writes nothing but initialized values.
        let out = unsafe { &mut *(std::ptr::from_mut(self.data) as *mut [MaybeUninit<f32>]) };
        crate_product(
            Start::Zero,
            scale,
            a,
            b,
            (out, self.row_stride),
            gemm::Parallelism::None,
        );
        Ok(())
    }
}

/// `start + a b` as rows side by side, by all threads of the current rayon pool.
pub fn product(bias: Option<&[f32]>, a: Matrix, b: Matrix) -> Result<Vec<f32>> {
    let columns = b.columns;
    match bias {
        Some(bias) if bias.len() != columns => bail!("product: {} biases for {columns} columns", bias.len()),
        Some(bias) => start_product(Start::Bias(bias), a, b),
        None => start_product(Start::Zero, a, b),
    }
}

/// `start + bias + a b`, where `start` has rows side by side like the result's; else as [`product`].
pub fn product_onto(start: &[f32], bias: &[f32], a: Matrix, b: Matrix) -> Result<Vec<f32>> {
    if Some(start.len()) != a.rows.checked_mul(b.columns) || bias.len() != b.columns {
        bail!(
            "product: {} values and {} biases do not fit [{}, {}]",
            start.len(),
            bias.len(),
            a.rows,
            b.columns
        );
    }
    start_product(Start::Rows(start, bias), a, b)
}

/// The caller has checked that `start` fits.
fn start_product(start: Start, a: Matrix, b: Matrix) -> Result<Vec<f32>> {
    let (rows, columns) = (a.rows, b.columns);
    fits(rows, columns, a, b)?;
    let Some(len) = rows.checked_mul(columns) else {
        bail!("product: [{rows}, {columns}] is too large");
    };
    let mut out = Vec::with_capacity(len);
    let spare = (&mut out.spare_capacity_mut()[..len], columns);
    #[cfg(target_arch = "x86_64")]
    let own = avx2::Product::new(start, 1.0, a, b);
    #[cfg(target_arch = "x86_64")]
    match own {
        Some(own) => own.write(spare.0, spare.1, true),
        None => crate_product(start, 1.0, a, b, spare, gemm::Parallelism::Rayon(0)),
    }
    #[cfg(not(target_arch = "x86_64"))]
    crate_product(start, 1.0, a, b, spare, gemm::Parallelism::Rayon(0));
    // SAFETY: both have written every element of `len`.
    unsafe { out.set_len(len) };
    Ok(out)
}

/// `out = start + scale * a b` by the `gemm` crate, all of `[a.rows, b.columns]` is written. The caller has checked the sizes.
fn crate_product(
    start: Start,
    scale: f32,
    a: Matrix,
    b: Matrix,
    (out, stride): (&mut [MaybeUninit<f32>], usize),
    parallelism: gemm::Parallelism,
) {
    if a.rows == 0 || b.columns == 0 {
        return;
    }
    for (number, row) in out.chunks_mut(stride).take(a.rows).enumerate() {
        match start {
            Start::Zero | Start::Add => break,
            Start::Bias(bias) => row.iter_mut().zip(bias).for_each(|(out, bias)| {
                out.write(*bias);
            }),
            Start::Rows(rows, bias) => {
                let rows = &rows[number * b.columns..];
                row.iter_mut()
                    .zip(rows.iter().zip(bias))
                    .for_each(|(out, (row, bias))| {
                        out.write(row + bias);
                    });
            }
        }
    }
    let add = !matches!(start, Start::Zero);
    // SAFETY: `check` proved that every element of the three matrices lies inside its slice; rows of the output do not
    // overlap each other, and `out` being borrowed mutably, the output does not overlap the inputs. All sizes and strides fit
    // isize, since a slice's length does. The output is read only where it was written before.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr().cast::<f32>(),
            1,
            stride as isize,
            add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Whether `a b` is `[rows, columns]`.
fn fits(rows: usize, columns: usize, a: Matrix, b: Matrix) -> Result<()> {
    if a.rows != rows || b.columns != columns || a.columns != b.rows {
        bail!(
            "product: [{}, {}] times [{}, {}] does not give [{rows}, {columns}]",
            a.rows,
            a.columns,
            b.rows,
            b.columns
        );
    }
    Ok(())
}

/// Whether a matrix lies inside `len` elements, with rows that do not overlap.
fn check(len: usize, rows: usize, columns: usize, row_stride: usize) -> Result<()> {
    if row_stride < columns || row_stride > isize::MAX as usize {
        bail!("matrix: rows of {columns} elements cannot be {row_stride} elements apart");
    }
    let end = match rows.checked_sub(1) {
        None => Some(0),
        Some(last) => last
            .checked_mul(row_stride)
            .and_then(|start| start.checked_add(columns)),
    };
    match end {
        Some(end) if end <= len => Ok(()),
        _ => bail!("matrix [{rows}, {columns}] with rows {row_stride} apart does not fit into {len} elements"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        let hash = |i: usize| {
            (i as u32)
                .wrapping_mul(2_654_435_761)
                .wrapping_add(seed.wrapping_mul(40_503))
        };
        (0..n).map(|i| (hash(i) >> 8) as f32 / (1 << 24) as f32 - 0.5).collect()
    }

    fn at(m: Matrix, row: usize, column: usize) -> f64 {
        f64::from(m.data[row * m.row_stride + column * m.column_stride])
    }

    /// Both ways to compute a product, what they start with, and stride of the result, against plain sums.
    #[test]
    fn products_of_strided_matrices_equal_plain_sums() {
        let (a, b, bias) = (values(40_000, 1), values(40_000, 2), values(100, 4));
        let more = values(7_000, 5);
        for (m, k, n) in [
            (1, 7, 5),
            (50, 32, 50),
            (3, 1, 9),
            (17, 50, 1),
            (2, 0, 3),
            (49, 24, 64),
            (90, 150, 37),
        ] {
            for (a, b) in [
                (Matrix::new(&a, m, k, 160), Matrix::new(&b, k, n, 70)),
                (Matrix::new(&a, k, m, 161).map(Matrix::t), Matrix::new(&b, k, n, 64)),
                (
                    Matrix::new(&a[3..], m, k, 150),
                    Matrix::new(&b, n, k, 153).map(Matrix::t),
                ),
            ] {
                let (a, b) = (a.unwrap(), b.unwrap());
                let sum = |row, column| (0..k).map(|j| at(a, row, j) * at(b, j, column)).sum::<f64>();
                let mut scaled = values(m * 70, 3);
                let before = scaled.clone();
                MatrixMut::new(&mut scaled, m, n, 70)
                    .unwrap()
                    .set_product(0.5, a, b)
                    .unwrap();
                let plain = product(None, a, b).unwrap();
                let added = &more[..m * n];
                let with_bias = product(Some(&bias[..n]), a, b).unwrap();
                let mut crates = vec![MaybeUninit::new(0.0); m * n];
                crate_product(
                    Start::Bias(&bias[..n]),
                    1.0,
                    a,
                    b,
                    (&mut crates, n),
                    gemm::Parallelism::None,
                );
                let onto = product_onto(added, &bias[..n], a, b).unwrap();
                let mut crates_onto = vec![MaybeUninit::new(0.0); m * n];
                crate_product(
                    Start::Rows(added, &bias[..n]),
                    1.0,
                    a,
                    b,
                    (&mut crates_onto, n),
                    gemm::Parallelism::None,
                );
                for i in 0..m * 70 {
                    let (row, column) = (i / 70, i % 70);
                    if column >= n {
                        assert_eq!(scaled[i], before[i], "written outside");
                        continue;
                    }
                    let (sum, bias) = (sum(row, column), f64::from(bias[column]));
                    // SAFETY: every element was given a value above.
                    let [crates, crates_onto] =
                        [&crates, &crates_onto].map(|all| unsafe { all[row * n + column].assume_init() });
                    let added = f64::from(added[row * n + column]);
                    for (actual, expected) in [
                        (scaled[i], 0.5 * sum),
                        (plain[row * n + column], sum),
                        (with_bias[row * n + column], sum + bias),
                        (crates, sum + bias),
                        (onto[row * n + column], sum + bias + added),
                        (crates_onto, sum + bias + added),
                    ] {
                        assert!(
                            (f64::from(actual) - expected).abs() < 1e-5,
                            "[{m}, {k}, {n}] {row} {column}"
                        );
                    }
                }
            }
        }
        assert!(
            product(
                Some(&bias),
                Matrix::new(&a, 2, 3, 3).unwrap(),
                Matrix::new(&b, 3, 4, 4).unwrap()
            )
            .is_err()
        );
    }

    #[test]
    fn products_do_not_depend_on_the_number_of_threads() {
        for (m, k, n) in [
            (96, 4000, 384),
            (3200, 96, 288),
            (1, 700, 900),
            (900, 700, 1),
            (33, 2049, 50),
            (20, 30, 2100),
        ] {
            let (a, b) = (values(m * k, 1), values(k * n, 2));
            let product = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let (a, b) = (Matrix::new(&a, k, m, m).unwrap().t(), Matrix::new(&b, k, n, n).unwrap());
                let out = pool.install(|| product(None, a, b)).unwrap();
                out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
            };
            let one = product(1);
            assert!(
                [2, 3, 5].into_iter().all(|threads| product(threads) == one),
                "[{m}, {k}] times [{k}, {n}]"
            );
            let plain: f64 = (0..k).map(|j| f64::from(a[j * m]) * f64::from(b[j * n])).sum();
            assert!((f64::from(f32::from_bits(one[0])) - plain).abs() < 1e-3);
        }
    }

    #[test]
    fn matrices_outside_their_slice_are_refused() {
        let data = [0.0; 12];
        assert!(Matrix::new(&data, 3, 4, 4).is_ok());
        assert!(Matrix::new(&data, 3, 2, 5).is_ok());
        assert!(Matrix::new(&data, 3, 4, 5).is_err());
        assert!(Matrix::new(&data, 4, 4, 4).is_err());
        assert!(Matrix::new(&data, 3, 4, 3).is_err());
        assert!(Matrix::new(&data, usize::MAX, 2, 4).is_err());
        assert!(Matrix::new(&data, 2, 1, usize::MAX).is_err());
        let a = Matrix::new(&data, 3, 4, 4).unwrap();
        let mut out = [0.0; 9];
        assert!(
            MatrixMut::new(&mut out, 3, 3, 3)
                .unwrap()
                .set_product(1.0, a, a)
                .is_err()
        );
        assert!(
            MatrixMut::new(&mut out, 3, 3, 3)
                .unwrap()
                .set_product(1.0, a, a.t())
                .is_ok()
        );
        assert!(product(None, a, a).is_err());
    }
}
