//! Files of several scans: all coefficients are collected, then transformed.

use super::header::{Component, Next, Scan};
use super::huffman::{Bits, Huffman, ZIGZAG};
use super::{Jpeg, Scratch, Units, dc_table, no_table, steps, transform};

/// A component's coefficients, block after block in rows of whole units.
struct Blocks<'a> {
    data: &'a mut [i16],
    wide: usize,
}

impl Blocks<'_> {
    /// A block of the frame, and the frame has it: its size decided on the number of blocks.
    fn block(&mut self, x: usize, y: usize) -> Result<&mut [i16; 64], String> {
        let at = (y * self.wide + x) * 64;
        let block = self.data.get_mut(at..at + 64).and_then(|block| block.try_into().ok());
        block.ok_or_else(|| "a block lies outside the image".into())
    }
}

/// Decodes all scans into the planes of `scratch`.
pub(super) fn decode(jpeg: &mut Jpeg, units: Units, scratch: &mut Scratch) -> Result<(), String> {
    let frame = jpeg.frame.clone();
    let Scratch {
        data,
        ends,
        planes,
        coefficients,
        damaged,
    } = scratch;
    coefficients.resize_with(frame.components.len(), Vec::new);
    let across = |component: &Component| frame.units_wide() * component.h;
    for (component, blocks) in frame.components.iter().zip(coefficients.iter_mut()) {
        blocks.clear();
        blocks.resize(across(component) * frame.units_high() * component.v * 64, 0);
    }
    let mut tables = vec![None; frame.components.len()];
    let mut scan = jpeg.scan.clone();
    loop {
        for &(at, _, _) in &scan.components {
            if tables[at].is_none() {
                tables[at] = Some(steps(&jpeg.reader, &frame, at)?);
            }
        }
        jpeg.reader.coded(data, ends);
        let mut intervals = Intervals::new(data, ends, jpeg.reader.restart);
        let mut blocks: Vec<_> = frame
            .components
            .iter()
            .zip(coefficients.iter_mut())
            .map(|(component, data)| Blocks {
                data,
                wide: across(component),
            })
            .collect();
        let mut coder = Coder::new(jpeg, &scan);
        match scan.components.as_slice() {
            &[(at, dc, ac)] => {
                let component = &frame.components[at];
                for y in 0..component.blocks_high() {
                    for x in 0..component.blocks_wide() {
                        if let Some(bits) = intervals.bits(&mut coder) {
                            coder.block(bits, blocks[at].block(x, y)?, at, dc, ac)?;
                        }
                    }
                }
            }
            several => {
                for unit in 0..frame.units_wide() * frame.units_high() {
                    let (x, y) = (unit % frame.units_wide(), unit / frame.units_wide());
                    let Some(bits) = intervals.bits(&mut coder) else {
                        continue;
                    };
                    for &(at, dc, ac) in several {
                        let Component { h, v, .. } = frame.components[at];
                        for (row, column) in (0..v * h).map(|number| (number / h, number % h)) {
                            let block = blocks[at].block(x * h + column, y * v + row)?;
                            coder.block(bits, block, at, dc, ac)?;
                        }
                    }
                }
            }
        }
        intervals.note();
        *damaged |= intervals.damaged;
        match jpeg.reader.next()? {
            Next::Scan(next) => scan = next,
            Next::End => break,
        }
    }
    for (at, (component, plane)) in frame.components.iter().zip(planes.iter_mut()).enumerate() {
        let steps = tables[at].ok_or("a color channel has no data")?;
        let wide = across(component);
        let high = (units.bottom - units.top) * component.v;
        let (left, top) = (units.left * component.h, units.top * component.v);
        let across = plane.stride / 8;
        for (y, x) in (0..high).flat_map(|y| (0..across).map(move |x| (y, x))) {
            let from = ((top + y) * wide + left + x) * 64;
            let block = coefficients[at]
                .get(from..from + 64)
                .and_then(|block| block.try_into().ok());
            let block: &[i16; 64] = block.ok_or("a block lies outside the image")?;
            let used = if block[1..].iter().all(|&value| value == 0) {
                1
            } else {
                64
            };
            let to = y * 8 * plane.stride + x * 8;
            transform(block, used, &steps, plane, to);
        }
    }
    Ok(())
}

/// The bits of a scan, interval after interval.
struct Intervals<'a> {
    data: &'a [u8],
    ends: std::slice::Iter<'a, usize>,
    start: usize,
    /// Units in an interval, and how many of this one are still to come.
    length: usize,
    left: usize,
    bits: Bits<'a>,
    damaged: bool,
}

impl<'a> Intervals<'a> {
    fn new(data: &'a [u8], ends: &'a [usize], restart: usize) -> Self {
        Self {
            data,
            ends: ends.iter(),
            start: 0,
            length: if restart == 0 { usize::MAX } else { restart },
            left: 0,
            bits: Bits::new(&[]),
            damaged: false,
        }
    }

    /// Where the next unit's bits are; `None` where the data have come to their end.
    fn bits(&mut self, coder: &mut Coder) -> Option<&mut Bits<'a>> {
        if self.left == 0 {
            self.note();
            let &end = self.ends.next().unwrap_or(&self.data.len());
            self.bits = Bits::new(self.data.get(self.start..end).unwrap_or_default());
            self.start = end;
            self.left = self.length;
            coder.restart();
        }
        self.left -= 1;
        (!self.bits.exhausted()).then_some(&mut self.bits)
    }

    fn note(&mut self) {
        self.damaged |= self.bits.damaged || self.bits.exhausted();
    }
}

/// What one scan does to a block.
struct Coder<'a> {
    dc: [Option<&'a Huffman>; 4],
    ac: [Option<&'a Huffman>; 4],
    progressive: bool,
    first: usize,
    last: usize,
    high: u32,
    low: u32,
    predictions: [i32; 4],
    /// Blocks still to come that hold nothing new.
    empty: u32,
}

impl<'a> Coder<'a> {
    fn new(jpeg: &'a Jpeg, scan: &Scan) -> Self {
        Self {
            dc: std::array::from_fn(|at| jpeg.reader.dc[at].as_deref()),
            ac: std::array::from_fn(|at| jpeg.reader.ac[at].as_deref()),
            progressive: jpeg.frame.progressive,
            first: scan.first,
            last: scan.last,
            high: scan.high,
            low: scan.low,
            predictions: [0; 4],
            empty: 0,
        }
    }

    fn restart(&mut self) {
        self.predictions = [0; 4];
        self.empty = 0;
    }

    fn block(&mut self, bits: &mut Bits, block: &mut [i16; 64], at: usize, dc: usize, ac: usize) -> Result<(), String> {
        if self.first == 0 && self.high > 0 {
            if bits.bit() {
                block[0] |= 1 << self.low;
            }
            return Ok(());
        }
        if self.first == 0 {
            let difference = dc_table(self.dc[dc])?.difference(bits);
            self.predictions[at] = self.predictions[at].wrapping_add(difference);
            block[0] = (self.predictions[at] << self.low) as i16;
            if self.progressive {
                return Ok(());
            }
        }
        let table = self.ac[ac].ok_or_else(no_table)?;
        match (self.progressive, self.high) {
            (false, _) => {
                table.coefficients::<true>(bits, block);
            }
            (true, 0) => self.new_bits(bits, block, table),
            (true, _) => self.refine(bits, block, table),
        }
        Ok(())
    }

    /// The high bits of AC coefficients.
    fn new_bits(&mut self, bits: &mut Bits, block: &mut [i16; 64], table: &Huffman) {
        if self.empty > 0 {
            self.empty -= 1;
            return;
        }
        let mut at = self.first;
        while at <= self.last {
            bits.refill();
            let symbol = table.symbol(bits);
            let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 && run < 15 {
                bits.refill();
                self.empty = (1 << run) - 1 + bits.unsigned(run);
                return;
            }
            at += run as usize;
            if size > 0 {
                block[usize::from(ZIGZAG[at & 127])] = (bits.signed(size) << self.low) as i16;
            }
            at += 1;
        }
    }

    /// One more bit of AC coefficients, among which new ones appear.
    fn refine(&mut self, bits: &mut Bits, block: &mut [i16; 64], table: &Huffman) {
        let step = 1i16 << self.low;
        let mut at = self.first;
        if self.empty == 0 {
            while at <= self.last {
                bits.refill();
                let symbol = table.symbol(bits);
                let (mut run, size) = (u32::from(symbol >> 4), symbol & 15);
                let mut value = 0;
                if size == 0 && run < 15 {
                    bits.refill();
                    self.empty = (1 << run) + bits.unsigned(run);
                    break;
                }
                if size > 0 {
                    value = if bits.bit() { step } else { -step };
                }
                // `run` coefficients that are still 0 are passed over, those that are not get their bit.
                while at <= self.last {
                    let coefficient = &mut block[usize::from(ZIGZAG[at])];
                    if *coefficient != 0 {
                        more(bits, coefficient, step);
                    } else if run == 0 {
                        *coefficient = value;
                        at += 1;
                        break;
                    } else {
                        run -= 1;
                    }
                    at += 1;
                }
            }
        }
        if self.empty > 0 {
            for number in at..=self.last {
                let coefficient = &mut block[usize::from(ZIGZAG[number])];
                if *coefficient != 0 {
                    more(bits, coefficient, step);
                }
            }
            self.empty -= 1;
        }
    }
}

fn more(bits: &mut Bits, coefficient: &mut i16, step: i16) {
    if bits.bit() && *coefficient & step == 0 {
        let away = if *coefficient < 0 { -step } else { step };
        *coefficient = coefficient.wrapping_add(away);
    }
}
