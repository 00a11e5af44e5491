//! Matrix products on strided slices: the safe side of the `gemm` crate.

use candle_core::{Result, bail};

/// Who computes a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread.
    One,
    /// The threads of the current rayon pool.
    Pool,
}

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

    /// `self = scale * a b`.
    pub fn set_product(self, scale: f32, a: Matrix, b: Matrix, threads: Threads) -> Result<()> {
        self.product(false, scale, a, b, threads)
    }

    /// `self += a b`.
    pub fn add_product(self, a: Matrix, b: Matrix, threads: Threads) -> Result<()> {
        self.product(true, 1.0, a, b, threads)
    }

    fn product(self, add: bool, scale: f32, a: Matrix, b: Matrix, threads: Threads) -> Result<()> {
        if a.rows != self.rows || b.columns != self.columns || a.columns != b.rows {
            bail!(
                "product: [{}, {}] times [{}, {}] does not give [{}, {}]",
                a.rows,
                a.columns,
                b.rows,
                b.columns,
                self.rows,
                self.columns
            );
        }
        if self.rows == 0 || self.columns == 0 {
            return Ok(());
        }
        let parallelism = match threads {
            Threads::One => gemm::Parallelism::None,
            Threads::Pool => gemm::Parallelism::Rayon(0),
        };
        // SAFETY: `check` proved that every element of the three matrices lies inside its slice; rows of the output do not
        // overlap each other, and `data` being borrowed mutably, the output does not overlap the inputs. All sizes and
        // strides fit isize, since a slice's length does.
        unsafe {
            gemm::gemm(
                self.rows,
                self.columns,
                a.columns,
                self.data.as_mut_ptr(),
                1,
                self.row_stride as isize,
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
        Ok(())
    }
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

    #[test]
    fn products_of_strided_matrices_equal_plain_sums() {
        let (a, b) = (values(4000, 1), values(4000, 2));
        for (m, k, n) in [(1, 7, 5), (50, 32, 50), (3, 1, 9), (17, 50, 1), (2, 0, 3), (49, 24, 24)] {
            for (a, b) in [
                (Matrix::new(&a, m, k, 60), Matrix::new(&b, k, n, 70)),
                (Matrix::new(&a, k, m, 61).map(Matrix::t), Matrix::new(&b, k, n, 50)),
                (Matrix::new(&a[3..], m, k, 50), Matrix::new(&b, n, k, 53).map(Matrix::t)),
            ] {
                let (a, b) = (a.unwrap(), b.unwrap());
                for threads in [Threads::One, Threads::Pool] {
                    let mut out = values(m * 70, 3);
                    let before = out.clone();
                    MatrixMut::new(&mut out, m, n, 70)
                        .unwrap()
                        .add_product(a, b, threads)
                        .unwrap();
                    let mut scaled = before.clone();
                    MatrixMut::new(&mut scaled, m, n, 70)
                        .unwrap()
                        .set_product(0.5, a, b, threads)
                        .unwrap();
                    for i in 0..m * 70 {
                        let (row, column) = (i / 70, i % 70);
                        if column >= n {
                            assert_eq!((out[i], scaled[i]), (before[i], before[i]), "written outside");
                            continue;
                        }
                        let sum: f64 = (0..k).map(|j| at(a, row, j) * at(b, j, column)).sum();
                        assert!((f64::from(out[i]) - f64::from(before[i]) - sum).abs() < 1e-5);
                        assert!((f64::from(scaled[i]) - 0.5 * sum).abs() < 1e-5);
                    }
                }
            }
        }
    }

    #[test]
    fn products_do_not_depend_on_the_number_of_threads() {
        for (m, k, n) in [
            (96, 4000, 384),
            (3200, 96, 288),
            (1, 700, 900),
            (900, 700, 1),
            (33, 2049, 50),
        ] {
            let (a, b) = (values(m * k, 1), values(k * n, 2));
            let product = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut out = vec![0.0; m * n];
                let (a, b) = (Matrix::new(&a, k, m, m).unwrap().t(), Matrix::new(&b, k, n, n).unwrap());
                let out_matrix = MatrixMut::new(&mut out, m, n, n).unwrap();
                pool.install(|| out_matrix.set_product(1.0, a, b, Threads::Pool))
                    .unwrap();
                out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
            };
            let one = product(1);
            assert!(
                [2, 3, 5].into_iter().all(|threads| product(threads) == one),
                "[{m}, {k}] times [{k}, {n}]"
            );
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
                .add_product(a, a, Threads::One)
                .is_err()
        );
        assert!(
            MatrixMut::new(&mut out, 3, 3, 3)
                .unwrap()
                .add_product(a, a.t(), Threads::One)
                .is_ok()
        );
    }
}
