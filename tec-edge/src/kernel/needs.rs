//! What every kernel needs of the scratch memory, also those of other processors: so a computer says what a device needs.

use crate::panel::padded;

/// What a kernel needs of the scratch memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Bytes of an activation.
    pub(crate) factor: usize,
    /// Rows that it takes at once.
    pub(crate) rows: usize,
    /// Activations behind each row.
    pub(crate) tail: usize,
    /// Bytes behind the last row of softmax weights that it reads, though what they are does not matter.
    pub(crate) reach: usize,
}

impl Needs {
    #[allow(dead_code, reason = "of another processor")]
    pub(crate) const SCALAR: Self = Self::new(1, 4, 0);
    #[allow(dead_code, reason = "of another processor")]
    pub(crate) const DSP: Self = Self::new(2, 4, 0);
    #[allow(dead_code, reason = "of another processor")]
    pub(crate) const HELIUM: Self = Self::new(1, 4, 0);
    #[allow(dead_code, reason = "of another processor")]
    pub(crate) const WASM: Self = Self::new(2, 4, 0);
    #[allow(dead_code, reason = "of another processor")]
    pub(crate) const NEON: Self = Self::new(1, 4, 0);
    #[allow(dead_code, reason = "of another processor")]
    pub(crate) const AVX2: Self = Self::new(2, 6, 0);
    #[allow(dead_code, reason = "of another processor")]
    pub(crate) const AVX_VNNI: Self = Self::new(1, 6, 4);
    #[allow(dead_code, reason = "of another processor")]
    pub(crate) const AVX512_VNNI: Self = Self::new(1, 12, 4);
    #[allow(dead_code, reason = "of another processor")]
    pub(crate) const AMX: Self = Self {
        reach: 60,
        ..Self::new(1, 32, 0)
    };

    const fn new(factor: usize, rows: usize, tail: usize) -> Self {
        Self {
            factor,
            rows,
            tail,
            reach: 0,
        }
    }

    /// Activations from one row to the next.
    pub(crate) const fn stride(self, inner: usize) -> usize {
        padded(inner).saturating_add(self.tail)
    }

    /// Those of the kernel of this name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        ALL.iter().find(|(known, _)| *known == name).map(|&(_, needs)| needs)
    }
}

/// All kernels, those for devices first.
const ALL: [(&str, Needs); 11] = [
    ("scalar", Needs::SCALAR),
    ("dsp", Needs::DSP),
    ("helium", Needs::HELIUM),
    ("wasm-simd128", Needs::WASM),
    ("neon", Needs::NEON),
    ("neon-dotprod", Needs::NEON),
    ("neon-i8mm", Needs::NEON),
    ("avx2", Needs::AVX2),
    ("avx-vnni", Needs::AVX_VNNI),
    ("avx512-vnni", Needs::AVX512_VNNI),
    ("amx", Needs::AMX),
];

/// Their names.
pub(crate) const NAMES: [&str; ALL.len()] = {
    let mut names = [""; ALL.len()];
    let mut i = 0;
    while i < ALL.len() {
        names[i] = ALL[i].0;
        i += 1;
    }
    names
};
