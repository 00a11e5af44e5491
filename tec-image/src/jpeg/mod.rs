//! A decoder of JPEG files that need only be decoded in part, with the bits of libjpeg-turbo, which PIL uses.
//!
//! Baseline and progressive files of 8 bits with Huffman codes; 1, 3 or 4 channels. Where coded data are damaged, it goes on as
//! libjpeg does: what is missing is zero until the next restart marker.

mod color;
mod header;
mod huffman;
mod idct;
mod progressive;
#[cfg(target_arch = "x86_64")]
mod simd;

use crate::Pixels;
use color::Plane;
pub use color::Rect;
use header::{Frame, Next, Reader, Scan};
use huffman::{Bits, Huffman};

/// A JPEG file whose headers have been read.
pub(crate) struct Jpeg<'a> {
    reader: Reader<'a>,
    frame: Frame,
    scan: Scan,
}

/// What is kept from one file to the next to save allocations.
#[derive(Default)]
pub(crate) struct Scratch {
    data: Vec<u8>,
    ends: Vec<usize>,
    planes: Vec<Plane>,
    coefficients: Vec<Vec<i16>>,
    /// Whether the coded data of the last file were damaged, as far as they were decoded.
    pub damaged: bool,
}

impl<'a> Jpeg<'a> {
    /// Reads the headers of a file that begins with a start-of-image marker, up to the first coded data.
    pub fn open(bytes: &'a [u8]) -> Result<Self, String> {
        let mut reader = Reader::new(bytes);
        let Next::Scan(scan) = reader.next()? else {
            return Err("there is no image in it".into());
        };
        // A scan header is only accepted behind a frame header.
        let frame = reader.frame.take().ok_or("there is no frame header")?;
        // For the scans that follow.
        reader.frame = Some(frame.clone());
        Ok(Self { reader, frame, scan })
    }

    pub fn width(&self) -> usize {
        self.frame.width
    }

    pub fn height(&self) -> usize {
        self.frame.height
    }

    /// 1, 3 or 4.
    pub fn channels(&self) -> usize {
        self.frame.components.len()
    }

    /// The TIFF structure in the EXIF block.
    pub fn exif(&self) -> Option<&'a [u8]> {
        self.reader.exif
    }

    /// Decodes the pixels of `part`, which lies within the image. Data below and behind it are not looked at, except that the
    /// file must have an end.
    pub fn decode(mut self, part: Rect, scratch: &mut Scratch) -> Result<Pixels, String> {
        let units = Units::around(&self.frame, part);
        scratch.damaged = false;
        scratch.planes.resize_with(self.frame.components.len(), Plane::default);
        for (component, plane) in self.frame.components.iter().zip(&mut scratch.planes) {
            plane.left = units.left * 8 * component.h;
            plane.top = units.top * 8 * component.v;
            plane.stride = (units.right - units.left) * 8 * component.h;
            plane
                .data
                .resize(plane.stride * (units.bottom - units.top) * 8 * component.v, 0);
        }
        let whole = self.scan.components.len() == self.frame.components.len();
        if whole && !self.frame.progressive {
            self.baseline(units, scratch)?;
            self.find_end()?;
        } else {
            progressive::decode(&mut self, units, scratch)?;
        }
        // Which colors: some files say so only behind the first scan, and libjpeg ignores that as well.
        color::pixels(&self.frame, &scratch.planes, self.reader.coding(&self.frame), part)
    }

    /// One scan of everything, decoded and transformed unit by unit.
    fn baseline(&mut self, units: Units, scratch: &mut Scratch) -> Result<(), String> {
        let Scratch {
            data,
            ends,
            planes,
            damaged,
            ..
        } = scratch;
        self.reader.coded(data, ends);
        let mut channels = Vec::new();
        for &(at, dc, ac) in &self.scan.components {
            let component = &self.frame.components[at];
            channels.push(Channel {
                at,
                h: component.h,
                v: component.v,
                dc: dc_table(self.reader.dc[dc].as_deref())?,
                ac: self.reader.ac[ac].as_deref().ok_or_else(no_table)?,
                steps: steps(&self.reader, &self.frame, at)?,
            });
        }
        let wide = self.frame.units_wide();
        let last = units.bottom * wide;
        let interval = match self.reader.restart {
            0 => usize::MAX,
            interval => interval,
        };
        let mut unit = 0usize;
        let mut start = 0;
        // Behind the last interval, nothing is left of the data.
        for &end in ends.iter().chain(std::iter::repeat(&data.len())) {
            let mut bits = Bits::new(&data[start..end]);
            let mut predictions = [0i32; 4];
            let stop = unit.saturating_add(interval).min(last);
            while unit < stop {
                let (x, y) = (unit % wide, unit / wide);
                let wanted = y >= units.top && (units.left..units.right).contains(&x);
                let place = wanted.then(|| (x - units.left, y - units.top));
                let exhausted = bits.exhausted();
                for (channel, prediction) in channels.iter().zip(&mut predictions) {
                    match place {
                        Some(place) if exhausted => channel.grey(place, &mut planes[channel.at]),
                        Some(place) => channel.unit(&mut bits, prediction, place, &mut planes[channel.at]),
                        None if exhausted => {}
                        None => channel.pass_over(&mut bits, prediction),
                    }
                }
                unit += 1;
            }
            *damaged |= bits.damaged || bits.exhausted();
            if unit >= last {
                break;
            }
            start = end;
        }
        Ok(())
    }

    /// What follows the last scan must end the image; a file without that is cut.
    fn find_end(&mut self) -> Result<(), String> {
        loop {
            match self.reader.next()? {
                Next::End => return Ok(()),
                Next::Scan(_) => self.reader.coded(&mut Vec::new(), &mut Vec::new()),
            }
        }
    }
}

/// The units of coded data that a part of an image needs.
#[derive(Clone, Copy)]
struct Units {
    left: usize,
    top: usize,
    right: usize,
    bottom: usize,
}

impl Units {
    fn around(frame: &Frame, part: Rect) -> Self {
        // Upsampling looks at one sample of a smaller plane around, which is up to a unit's share of pixels.
        let margin = |factor: usize| if factor > 1 { factor } else { 0 };
        let (across, down) = (margin(frame.h), margin(frame.v));
        Self {
            left: part.left.saturating_sub(across) / (8 * frame.h),
            top: part.top.saturating_sub(down) / (8 * frame.v),
            right: (part.left + part.width + across)
                .div_ceil(8 * frame.h)
                .min(frame.units_wide()),
            bottom: (part.top + part.height + down)
                .div_ceil(8 * frame.v)
                .min(frame.units_high()),
        }
    }
}

/// A component within a baseline scan.
struct Channel<'a> {
    at: usize,
    h: usize,
    v: usize,
    dc: &'a Huffman,
    ac: &'a Huffman,
    steps: [i32; 64],
}

impl Channel<'_> {
    /// Decodes this component's blocks of one unit into its place in the plane.
    #[inline(always)]
    fn unit(&self, bits: &mut Bits, prediction: &mut i32, place: (usize, usize), plane: &mut Plane) {
        for (row, column) in (0..self.v).flat_map(|row| (0..self.h).map(move |column| (row, column))) {
            let mut block = [0; 64];
            *prediction = prediction.wrapping_add(self.dc.difference(bits));
            block[0] = *prediction as i16;
            let used = self.ac.coefficients::<true>(bits, &mut block);
            transform(&block, used, &self.steps, plane, self.offset(place, row, column, plane));
        }
    }

    /// Steps over this component's blocks of one unit.
    #[inline(always)]
    fn pass_over(&self, bits: &mut Bits, prediction: &mut i32) {
        for _ in 0..self.v * self.h {
            *prediction = prediction.wrapping_add(self.dc.difference(bits));
            self.ac.coefficients::<false>(bits, &mut [0; 64]);
        }
    }

    /// Fills one unit where there are no data.
    fn grey(&self, place: (usize, usize), plane: &mut Plane) {
        for (row, column) in (0..self.v).flat_map(|row| (0..self.h).map(move |column| (row, column))) {
            transform(&[0; 64], 0, &self.steps, plane, self.offset(place, row, column, plane));
        }
    }

    #[inline(always)]
    fn offset(&self, (x, y): (usize, usize), row: usize, column: usize, plane: &Plane) -> usize {
        (y * self.v + row) * 8 * plane.stride + (x * self.h + column) * 8
    }
}

/// Writes a block's samples; `used` coefficients in zigzag order may differ from 0.
#[inline(always)]
fn transform(block: &[i16; 64], used: usize, steps: &[i32; 64], plane: &mut Plane, at: usize) {
    let Plane { data, stride, .. } = plane;
    // Eight rows of eight samples; the planes are made of whole units.
    let rows = data[at..].chunks_mut(*stride).take(8);
    if used <= 1 {
        let value = idct::flat(block[0], steps[0]);
        rows.for_each(|row| row[..8].fill(value));
        return;
    }
    #[cfg(target_arch = "x86_64")]
    let samples = simd::block(block, steps).unwrap_or_else(|| idct::block(block, steps));
    #[cfg(not(target_arch = "x86_64"))]
    let samples = idct::block(block, steps);
    for (row, samples) in rows.zip(samples.chunks_exact(8)) {
        row[..8].copy_from_slice(samples);
    }
}

/// A component's quantization steps in rows.
fn steps(reader: &Reader, frame: &Frame, at: usize) -> Result<[i32; 64], String> {
    let table = reader.quantizers[frame.components[at].quantizer];
    let table = table.ok_or("a quantization table is missing")?;
    let mut steps = [0; 64];
    for (number, step) in table.into_iter().enumerate() {
        steps[usize::from(huffman::ZIGZAG[number])] = i32::from(step);
    }
    Ok(steps)
}

fn dc_table(table: Option<&Huffman>) -> Result<&Huffman, String> {
    let table = table.ok_or_else(no_table)?;
    match table.is_dc {
        true => Ok(table),
        false => Err("a Huffman table is not for DC coefficients".into()),
    }
}

fn no_table() -> String {
    "a Huffman table is missing".into()
}
