//! Huffman codes and the bits they are read from.

/// Codes up to this length are looked up at once.
const LOOK: u32 = 10;
/// In an entry: the value follows from the looked-up bits alone.
const COMPLETE: u32 = 1 << 7;

/// From zigzag order to rows; 16 more entries for runs that lead past the last coefficient.
#[rustfmt::skip]
pub(super) const ZIGZAG: [u8; 128] = {
    let order: [u8; 64] = [
        0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
        35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55,
        62, 63,
    ];
    let mut table = [63; 128];
    let mut at = 0;
    while at < 64 {
        table[at] = order[at];
        at += 1;
    }
    table
};

/// A table of codes.
pub(super) struct Huffman {
    /// For the next `LOOK` bits: in bits 0..7 how many are used (0: the code is longer), then [`COMPLETE`], in bits 8..16 the
    /// symbol, in bits 16..32 the value if complete, and then the bits used include it.
    look: [u32; 1 << LOOK],
    /// For each length, one more than its greatest code, moved to 16 bits.
    limit: [u32; 17],
    /// For each length, what to add to a code to find its symbol.
    offset: [i32; 17],
    symbols: [u8; 256],
    /// Whether DC differences can be read with it: they have at most 15 bits.
    pub is_dc: bool,
}

impl Huffman {
    pub fn new(counts: &[u8; 16], symbols: &[u8]) -> Result<Self, String> {
        let mut table = Self {
            look: [0; 1 << LOOK],
            limit: [0; 17],
            offset: [0; 17],
            symbols: [0; 256],
            is_dc: symbols.iter().all(|&symbol| symbol <= 15),
        };
        let room = table
            .symbols
            .get_mut(..symbols.len())
            .ok_or("a Huffman table has more than 256 codes")?;
        room.copy_from_slice(symbols);
        let (mut code, mut number) = (0u32, 0usize);
        for length in 1..=16u32 {
            table.offset[length as usize] = number as i32 - code as i32;
            for _ in 0..counts[length as usize - 1] {
                if code >= 1 << length {
                    return Err("a Huffman table has more codes than fit".into());
                }
                if length <= LOOK {
                    let spare = LOOK - length;
                    for low in 0..1 << spare {
                        table.look[((code << spare) | low) as usize] = entry(table.symbols[number], length, low, spare);
                    }
                }
                code += 1;
                number += 1;
            }
            table.limit[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(table)
    }

    /// A symbol whose code is longer than `LOOK`. Bits that no code begins with are 17 lost ones and the symbol 0, as libjpeg
    /// has it.
    #[cold]
    fn long(&self, bits: &mut Bits) -> u8 {
        let next = bits.peek(16);
        for length in LOOK + 1..=16 {
            if next < self.limit[length as usize] {
                bits.skip(length);
                let at = (next >> (16 - length)) as i32 + self.offset[length as usize];
                return self.symbols.get(at as usize).copied().unwrap_or(0);
            }
        }
        bits.skip(17);
        bits.damaged = true;
        0
    }

    /// The next symbol. The caller has refilled.
    #[inline(always)]
    pub fn symbol(&self, bits: &mut Bits) -> u8 {
        let entry = self.look[bits.peek(LOOK) as usize];
        let symbol = (entry >> 8) as u8;
        if entry & 0x7F == 0 {
            return self.long(bits);
        }
        match entry & COMPLETE {
            0 => bits.skip(entry & 0x7F),
            _ => bits.skip((entry & 0x7F) - u32::from(symbol & 15)),
        }
        symbol
    }

    /// The next DC difference.
    #[inline(always)]
    pub fn difference(&self, bits: &mut Bits) -> i32 {
        bits.refill();
        let size = u32::from(self.symbol(bits) & 15);
        bits.signed(size)
    }

    /// The AC coefficients of one block, in rows; returns how many in zigzag order may differ from 0. Without `STORE` they are
    /// only passed over.
    #[inline(always)]
    pub fn coefficients<const STORE: bool>(&self, bits: &mut Bits, block: &mut [i16; 64]) -> usize {
        let mut at = 1usize;
        while at < 64 {
            bits.refill();
            let entry = self.look[bits.peek(LOOK) as usize];
            let used = entry & 0x7F;
            if entry & COMPLETE != 0 {
                at += (entry >> 12 & 15) as usize;
                bits.skip(used);
                if STORE {
                    block[usize::from(ZIGZAG[at & 127]) & 63] = (entry >> 16) as i16;
                }
                at += 1;
                continue;
            }
            let symbol = match used {
                0 => self.long(bits),
                used => {
                    bits.skip(used);
                    (entry >> 8) as u8
                }
            };
            let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 {
                if run < 15 {
                    return at;
                }
                at += 16;
                continue;
            }
            at += run;
            if STORE {
                block[usize::from(ZIGZAG[at & 127]) & 63] = bits.signed(size) as i16;
            } else {
                bits.skip(size);
            }
            at += 1;
        }
        64
    }
}

fn entry(symbol: u8, length: u32, low: u32, spare: u32) -> u32 {
    let size = u32::from(symbol & 15);
    let base = u32::from(symbol) << 8;
    if size == 0 || size > spare || length + size > LOOK {
        return base | length;
    }
    let value = low >> (spare - size);
    let signed = extend(value, size);
    base | (length + size) | COMPLETE | u32::from(signed as u16) << 16
}

/// The number that `size` bits stand for: a leading 1 means positive.
#[inline(always)]
fn extend(value: u32, size: u32) -> i32 {
    let value = value as i32;
    let negative = value < (1 << size) >> 1;
    value + if negative { 1 - (1 << size) } else { 0 }
}

/// Bits in their order; zeros follow the last one, and are counted.
pub(super) struct Bits<'a> {
    data: &'a [u8],
    /// The next byte to take; beyond the data, how many zeros were.
    at: usize,
    /// The next bits, from the highest down.
    next: u64,
    /// How many of them are counted as taken from the data.
    count: u32,
    /// Whether there was something that no encoder writes.
    pub damaged: bool,
}

impl<'a> Bits<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self {
            data,
            at: 0,
            next: 0,
            count: 0,
            damaged: false,
        }
    }

    /// Makes at least 32 bits ready.
    #[inline(always)]
    pub fn refill(&mut self) {
        if self.count >= 32 {
            return;
        }
        match self.data.get(self.at..self.at + 8) {
            Some(&[a, b, c, d, e, f, g, h]) => {
                self.next |= u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> self.count;
                let bytes = (63 - self.count) >> 3;
                self.at += bytes as usize;
                self.count += 8 * bytes;
            }
            _ => self.refill_at_end(),
        }
    }

    #[cold]
    fn refill_at_end(&mut self) {
        while self.count <= 56 {
            let byte = self.data.get(self.at).copied().unwrap_or(0);
            self.next |= u64::from(byte) << (56 - self.count);
            self.at += 1;
            self.count += 8;
        }
    }

    /// The next 1 to 32 bits.
    #[inline(always)]
    pub fn peek(&self, count: u32) -> u32 {
        (self.next >> (64 - count)) as u32
    }

    /// Moves on; the caller has refilled.
    #[inline(always)]
    pub fn skip(&mut self, count: u32) {
        self.next <<= count;
        self.count = self.count.wrapping_sub(count);
    }

    /// A number of 0 to 15 bits in JPEG's signed notation.
    #[inline(always)]
    pub fn signed(&mut self, size: u32) -> i32 {
        let value = self.unsigned(size);
        extend(value, size)
    }

    /// A number of 0 to 15 bits.
    #[inline(always)]
    pub fn unsigned(&mut self, size: u32) -> u32 {
        // In two steps: a shift by 64 is none.
        let value = (self.next >> 1 >> (63 - size)) as u32;
        self.skip(size);
        value
    }

    /// One bit, refilling as needed.
    #[inline(always)]
    pub fn bit(&mut self) -> bool {
        self.refill();
        self.unsigned(1) == 1
    }

    /// Whether more bits were taken than there are.
    pub fn exhausted(&self) -> bool {
        self.at * 8 > self.data.len() * 8 + self.count as usize
    }
}
