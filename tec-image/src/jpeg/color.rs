//! From the planes of the components to pixels: upsampling and color as libjpeg does them, CMYK as PIL does.

use super::header::{Coding, Component, Frame};
use crate::Pixels;

/// The factors of JFIF's color conversion in 16 bits.
pub(super) const CR_R: i32 = 91_881;
pub(super) const CB_B: i32 = 116_130;
pub(super) const CR_G: i32 = -46_802;
pub(super) const CB_G: i32 = -22_554;
pub(super) const HALF: i32 = 1 << 15;

/// The decoded samples of a component, from a whole block on.
#[derive(Default)]
pub(super) struct Plane {
    pub data: Vec<u8>,
    /// Samples from one row to the next.
    pub stride: usize,
    /// The sample of the component that `data` begins with.
    pub left: usize,
    pub top: usize,
}

impl Plane {
    fn row(&self, y: usize) -> &[u8] {
        let start = (y - self.top) * self.stride;
        &self.data[start..start + self.stride]
    }
}

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// Columns before it.
    pub left: usize,
    /// Rows above it.
    pub top: usize,
    /// Its columns, at least 1.
    pub width: usize,
    /// Its rows, at least 1.
    pub height: usize,
}

/// The pixels of `part`, whose samples and their neighbors lie in `planes`.
pub(super) fn pixels(frame: &Frame, planes: &[Plane], coding: Coding, part: Rect) -> Result<Pixels, String> {
    let channels = if coding == Coding::Grey { 1 } else { 3 };
    let mut out = vec![0; part.width * part.height * channels];
    let mut rows = [const { Row::new() }; 4];
    for (y, out) in out.chunks_exact_mut(part.width * channels).enumerate() {
        for ((row, component), plane) in rows.iter_mut().zip(&frame.components).zip(planes) {
            row.fill(frame, component, plane, part, part.top + y);
        }
        let [first, second, third, fourth] = &rows;
        let at = |row: &Row, x: usize| row.samples[row.skip + x];
        match coding {
            Coding::Grey => out.copy_from_slice(first.samples(part.width)),
            Coding::YCbCr => ycc_row(
                first.samples(part.width),
                second.samples(part.width),
                third.samples(part.width),
                out,
            ),
            Coding::Rgb => {
                for (x, out) in out.chunks_exact_mut(3).enumerate() {
                    out.copy_from_slice(&[at(first, x), at(second, x), at(third, x)]);
                }
            }
            Coding::Cmyk | Coding::Ycck => {
                for (x, out) in out.chunks_exact_mut(3).enumerate() {
                    let inks = [at(first, x), at(second, x), at(third, x)];
                    // libjpeg turns YCC into RGB and that into CMY by subtraction from 255.
                    let inks = match coding {
                        Coding::Ycck => ycc(inks[0], inks[1], inks[2]).map(|value| 255 - value),
                        _ => inks,
                    };
                    out.copy_from_slice(&inked(inks, at(fourth, x)));
                }
            }
        }
    }
    Pixels::new(part.width, part.height, channels, out)
}

/// One row of a component at the image's resolution.
struct Row {
    samples: Vec<u8>,
    /// Samples before the part's first.
    skip: usize,
    sums: Vec<u16>,
}

impl Row {
    const fn new() -> Self {
        Self {
            samples: Vec::new(),
            skip: 0,
            sums: Vec::new(),
        }
    }

    fn samples(&self, width: usize) -> &[u8] {
        &self.samples[self.skip..self.skip + width]
    }

    /// Row `y` of the image: libjpeg's "fancy" triangle filter for factors of 2, repetition for others.
    fn fill(&mut self, frame: &Frame, component: &Component, plane: &Plane, part: Rect, y: usize) {
        let (across, down) = (frame.h / component.h, frame.v / component.v);
        let own = y / down;
        let first = part.left / across;
        let last = (part.left + part.width - 1) / across;
        self.skip = part.left - first * across;
        self.samples.clear();
        let filtered = match (across, down) {
            (1, 2) => true,
            (2, 1 | 2) => component.width > 2,
            _ => false,
        };
        if !filtered {
            let row = &plane.row(own)[first - plane.left..=last - plane.left];
            match across {
                1 => self.samples.extend_from_slice(row),
                _ => self
                    .samples
                    .extend(row.iter().flat_map(|&sample| std::iter::repeat_n(sample, across))),
            }
            return;
        }
        let near = plane.row(own);
        let other = match (down, y % 2) {
            (1, _) => own,
            (_, 0) => own.saturating_sub(1),
            _ => (own + 1).min(component.height - 1),
        };
        let far = plane.row(other);
        if across == 1 {
            let bias = 1 + (y % 2) as u16;
            let span = first - plane.left..=last - plane.left;
            let pairs = near[span.clone()].iter().zip(&far[span]);
            self.samples
                .extend(pairs.map(|(&near, &far)| ((3 * u16::from(near) + u16::from(far) + bias) >> 2) as u8));
            return;
        }
        // Sums of two rows, with one more at either end: the neighbor, or the last one again at the image's edge.
        let (before, after) = (first.saturating_sub(1), (last + 1).min(component.width - 1));
        let sum = |at: usize| match down {
            1 => u16::from(near[at - plane.left]),
            _ => 3 * u16::from(near[at - plane.left]) + u16::from(far[at - plane.left]),
        };
        self.sums.clear();
        self.sums.push(sum(before));
        let span = first - plane.left..=last - plane.left;
        match down {
            1 => self.sums.extend(near[span].iter().map(|&near| u16::from(near))),
            _ => {
                let pairs = near[span.clone()].iter().zip(&far[span]);
                self.sums
                    .extend(pairs.map(|(&near, &far)| 3 * u16::from(near) + u16::from(far)));
            }
        }
        self.sums.push(sum(after));
        self.samples.resize(2 * (last + 1 - first), 0);
        let (even, odd, shift) = if down == 1 { (1, 2, 2) } else { (8, 7, 4) };
        for (pair, sums) in self.samples.chunks_exact_mut(2).zip(self.sums.windows(3)) {
            pair[0] = ((3 * sums[1] + sums[0] + even) >> shift) as u8;
            pair[1] = ((3 * sums[1] + sums[2] + odd) >> shift) as u8;
        }
    }
}

fn ycc_row(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    let done = super::simd::ycc_row(y, cb, cr, out);
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    for (x, out) in out.chunks_exact_mut(3).enumerate().skip(done) {
        out.copy_from_slice(&ycc(y[x], cb[x], cr[x]));
    }
}

/// One pixel of YCbCr as RGB.
pub(super) fn ycc(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let add = |sum: i32| (y + ((sum + HALF) >> 16)).clamp(0, 255) as u8;
    [add(CR_R * cr), add(CB_G * cb + CR_G * cr), add(CB_B * cb)]
}

/// CMYK as RGB by PIL: inverted as Adobe's files are, then each ink's rest times black's, by 255.
fn inked(inks: [u8; 3], black: u8) -> [u8; 3] {
    let rest = u32::from(black);
    inks.map(|ink| {
        let product = (255 - u32::from(ink)) * rest + 128;
        (rest - (((product >> 8) + product) >> 8)) as u8
    })
}
