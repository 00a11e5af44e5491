//! The processor's tiles: eight registers of 16 rows of 64 bytes, and the leave to use them.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};
use std::cell::Cell;
use std::sync::OnceLock;

use super::product::{Multiply, Steps, TILE_INPUTS, TILE_ROWS, TileSums};

/// Proof that tiles can be used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles(());

impl Tiles {
    pub(super) fn new() -> Option<Self> {
        static USABLE: OnceLock<bool> = OnceLock::new();
        USABLE
            .get_or_init(|| has_tiles() && may_use_tiles())
            .then_some(Self(()))
    }

    /// Gives this thread's tiles their shapes until the value is dropped.
    #[inline(always)]
    pub(super) fn configure(self) -> Configured {
        let first = !CONFIGURED.replace(true);
        if first {
            // SAFETY: the value of this type proves that there are tiles, and the configuration is a valid one.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPES, options(nostack, readonly)) };
        }
        Configured { first }
    }
}

/// AMX-TILE and AMX-INT8.
fn has_tiles() -> bool {
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    const FEATURES: u32 = 7;
    __cpuid(0).eax >= FEATURES && __cpuid_count(FEATURES, 0).edx & (TILE | INT8) == TILE | INT8
}

/// Linux saves the tiles, eight kilobytes a thread, only for processes that have asked for them.
fn may_use_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and changes nothing else than what the process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

std::thread_local! {
    static CONFIGURED: Cell<bool> = const { Cell::new(false) };
}

/// This thread's tiles have their shapes.
pub(super) struct Configured {
    /// Whether that was done for this value.
    first: bool,
}

impl Drop for Configured {
    #[inline(always)]
    fn drop(&mut self) {
        if self.first {
            CONFIGURED.set(false);
            // SAFETY: there are tiles, or this value would not be.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}

/// Palette 1, all eight tiles as large as there are.
static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [TILE_INPUTS as u16; 8],
    row_bytes_reserved: [0; 8],
    rows: [TILE_ROWS as u8; 8],
    rows_reserved: [0; 8],
};

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 8],
    row_bytes_reserved: [u16; 8],
    rows: [u8; 8],
    rows_reserved: [u8; 8],
}

/// One or more tiles of factors (`tmm4` to `tmm6`, in turn) with the tile of weights in `tmm7`, each added to sums of its own.
macro_rules! multiply {
    ($product:literal, $steps:expr, $fresh:expr, $sums:expr, $(($rows:ident, $at:literal, $sum:literal, $factors:literal)),*) => {
        asm!(
            "test {count}, {count}",
            "jz 2f",
            $(concat!("tilezero ", $sum),)*
            "jmp 3f",
            "2:",
            $(concat!("tileloadd ", $sum, ", [{sums} + {line}*1 + 1024*", $at, "]"),)*
            "3:",
            $(concat!("mov {", stringify!($rows), "}, [{steps} + 8*", $at, "]"),)*
            "mov {stride}, [{steps} + 32]",
            "mov {advance}, [{steps} + 40]",
            "mov {weights}, [{steps} + 48]",
            "mov {count}, [{steps} + 56]",
            "4:",
            "tileloadd tmm7, [{weights} + {line}*1]",
            $(
                concat!("tileloadd ", $factors, ", [{", stringify!($rows), "} + {stride}*1]"),
                concat!($product, " ", $sum, ", ", $factors, ", tmm7"),
                concat!("add {", stringify!($rows), "}, {advance}"),
            )*
            "add {weights}, 1024",
            "dec {count}",
            "jnz 4b",
            "add {steps}, 64",
            "cmp {steps}, {end}",
            "jne 3b",
            $(concat!("tilestored [{sums} + {line}*1 + 1024*", $at, "], ", $sum),)*
            count = inout(reg) usize::from($fresh) => _,
            steps = inout(reg) $steps.as_ptr() => _,
            end = in(reg) $steps.as_ptr_range().end,
            sums = in(reg) $sums.as_mut_ptr(),
            line = in(reg) 64usize,
            stride = out(reg) _,
            advance = out(reg) _,
            weights = out(reg) _,
            $($rows = out(reg) _,)*
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

// SAFETY: the instructions read the steps, their tiles and the sums, and write the sums.
unsafe impl Multiply for Tiles {
    #[inline(always)]
    unsafe fn multiply<const TILES: usize, const SIGNED: bool>(
        self,
        steps: &[Steps],
        fresh: bool,
        sums: &mut [TileSums; TILES],
    ) {
        let _configured = self.configure();
        // SAFETY: the tiles have their shapes, the caller answers for the steps, and there are as many sums as tiles.
        unsafe {
            match (TILES, SIGNED) {
                (1, true) => multiply!("tdpbssd", steps, fresh, sums, (a, 0, "tmm0", "tmm4")),
                (1, false) => multiply!("tdpbusd", steps, fresh, sums, (a, 0, "tmm0", "tmm4")),
                (2, true) => multiply!(
                    "tdpbssd",
                    steps,
                    fresh,
                    sums,
                    (a, 0, "tmm0", "tmm4"),
                    (b, 1, "tmm1", "tmm5")
                ),
                (2, false) => multiply!(
                    "tdpbusd",
                    steps,
                    fresh,
                    sums,
                    (a, 0, "tmm0", "tmm4"),
                    (b, 1, "tmm1", "tmm5")
                ),
                (4, true) => multiply!(
                    "tdpbssd",
                    steps,
                    fresh,
                    sums,
                    (a, 0, "tmm0", "tmm4"),
                    (b, 1, "tmm1", "tmm5"),
                    (c, 2, "tmm2", "tmm6"),
                    (d, 3, "tmm3", "tmm4")
                ),
                (4, false) => multiply!(
                    "tdpbusd",
                    steps,
                    fresh,
                    sums,
                    (a, 0, "tmm0", "tmm4"),
                    (b, 1, "tmm1", "tmm5"),
                    (c, 2, "tmm2", "tmm6"),
                    (d, 3, "tmm3", "tmm4")
                ),
                _ => {}
            }
        }
    }
}
