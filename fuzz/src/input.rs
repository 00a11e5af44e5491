//! Bytes at a 16-byte boundary, and choices drawn from the fuzzer's bytes.

/// Bytes at a 16-byte boundary, at run time.
#[derive(Debug, Clone)]
pub struct Bytes {
    memory: Vec<u128>,
    len: usize,
}

impl Bytes {
    /// A copy of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        let mut new = Self::filled(bytes.len(), 0);
        new.get_mut().copy_from_slice(bytes);
        new
    }

    /// `len` times `byte`.
    pub fn filled(len: usize, byte: u8) -> Self {
        Self {
            memory: vec![u128::from_ne_bytes([byte; 16]); len.div_ceil(16)],
            len,
        }
    }

    /// The bytes.
    pub fn get(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.memory)[..self.len]
    }

    /// The bytes, to change.
    pub fn get_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.memory)[..self.len]
    }
}

/// SplitMix64.
#[derive(Debug, Clone, Copy)]
pub struct Random(pub u64);

impl Random {
    /// The next random number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// Choices: the fuzzer's bytes one after the other, then random ones that the last bytes decide.
#[derive(Debug, Clone)]
pub struct Source<'a> {
    rest: &'a [u8],
    random: Random,
}

impl<'a> Source<'a> {
    /// Choices from `data`.
    pub fn new(data: &'a [u8]) -> Self {
        let seed = data
            .last_chunk::<8>()
            .map_or(data.len() as u64, |last| u64::from_le_bytes(*last));
        Self {
            rest: data,
            random: Random(seed),
        }
    }

    /// Whether the fuzzer's bytes are used up.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Any byte.
    pub fn byte(&mut self) -> u8 {
        match self.rest.split_first() {
            Some((&byte, rest)) => {
                self.rest = rest;
                byte
            }
            None => self.random.next_u64() as u8,
        }
    }

    /// `N` bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        core::array::from_fn(|_| self.byte())
    }

    /// Any number.
    pub fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    /// Any number.
    pub fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    /// Below `end`; 0 for 0.
    pub fn below(&mut self, end: usize) -> usize {
        let number = if end <= 256 {
            self.byte().into()
        } else {
            self.word() as usize
        };
        number.checked_rem(end).unwrap_or(0)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u8) -> bool {
        // The last remainder, so that zeros say no.
        self.byte() % n == n - 1
    }

    /// A size: mostly one that fits, at times an absurd one.
    pub fn size(&mut self) -> usize {
        if self.one_in(32) {
            self.extreme() as usize
        } else {
            self.below(10)
        }
    }

    /// A number near where arithmetic goes wrong, or any number.
    pub fn extreme(&mut self) -> u32 {
        let near = u32::from(self.byte() % 9).wrapping_sub(4);
        match self.byte() % 8 {
            0 => near,
            1 => near.wrapping_add(1 << 31),
            2 => near.wrapping_add(1 << 16),
            3 => near.wrapping_add(1 << 30),
            4 => near.wrapping_mul(16),
            5 => near.wrapping_add(1 << (self.byte() % 32)),
            _ => self.word(),
        }
    }

    /// A length: `len`, at times another one. Never above 600.
    pub fn len(&mut self, len: usize) -> usize {
        let other = if self.one_in(32) { self.below(40) } else { len };
        other.min(600)
    }

    /// A value: mostly moderate, at times any bits.
    pub fn float(&mut self) -> f32 {
        const SPECIAL: [f32; 8] = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            f32::MIN,
            f32::MIN_POSITIVE,
            -0.0,
            1e-42,
        ];
        let kind = self.byte();
        match kind {
            0..240 => f32::from(self.byte() as i8) / 16.0 + f32::from(kind) / 4096.0,
            240..248 => SPECIAL[usize::from(kind % 8)],
            _ => f32::from_bits(self.word()),
        }
    }

    /// About `len` values. Half of the time all of them are moderate.
    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        let moderate = self.byte() < 128;
        let value = |source: &mut Self| {
            if moderate {
                f32::from(i16::from_le_bytes(source.bytes())) / 4096.0
            } else {
                source.float()
            }
        };
        (0..self.len(len)).map(|_| value(self)).collect()
    }

    /// About `len` bytes.
    pub fn i8s(&mut self, len: usize) -> Vec<i8> {
        (0..self.len(len)).map(|_| self.byte() as i8).collect()
    }

    /// About `len` numbers.
    pub fn i32s(&mut self, len: usize) -> Vec<i32> {
        (0..self.len(len)).map(|_| self.extreme() as i32).collect()
    }
}
