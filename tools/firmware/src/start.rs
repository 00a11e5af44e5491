//! From reset to `run`, for each kind of processor.

use core::ptr::addr_of_mut;

/// Kept free for the stack.
const STACK: usize = 64 * 1024;

unsafe extern "C" {
    /// The end of the program's own data.
    static mut __sheap: u8;
    /// The end of RAM, where the stack begins.
    static mut _stack_start: u8;
}

/// The memory between the program's data and its stack, from a 16-byte boundary on.
///
/// # Safety
/// To be called once: the slice is the only one to this memory.
unsafe fn memory() -> &'static mut [u8] {
    let start = addr_of_mut!(__sheap);
    let end = addr_of_mut!(_stack_start) as usize;
    let skip = start.align_offset(16);
    let len = end.saturating_sub(start as usize + skip + STACK);
    // SAFETY: the linker script puts nothing between these addresses, the stack stays within STACK bytes of the end, and
    // the caller sees to it that this happens once.
    unsafe { core::slice::from_raw_parts_mut(start.add(skip), len / 16 * 16) }
}

#[cfg(target_arch = "arm")]
mod cortex_m {
    use core::sync::atomic::{AtomicU32, Ordering};

    use cortex_m_rt::{ExceptionFrame, entry, exception};

    /// Picoseconds of a tick of SysTick: the build script knows the board's clock.
    #[allow(dead_code, reason = "not every program asks")]
    pub const TICK: u64 = match u64::from_str_radix(env!("TEC_TICK"), 10) {
        Ok(tick) => tick,
        Err(_) => panic!("TEC_TICK is not a number"),
    };
    /// Ticks from one overflow to the next.
    const PERIOD: u64 = 1 << 24;
    const CONTROL: *mut u32 = 0xE000_E010 as *mut u32;
    const RELOAD: *mut u32 = 0xE000_E014 as *mut u32;
    const CURRENT: *mut u32 = 0xE000_E018 as *mut u32;
    static OVERFLOWS: AtomicU32 = AtomicU32::new(0);

    #[exception]
    fn SysTick() {
        // The only writer.
        OVERFLOWS.store(OVERFLOWS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Ticks since the first call, which starts the timer.
    #[allow(dead_code, reason = "not every program asks")]
    pub fn ticks() -> u64 {
        // SAFETY: the registers of SysTick, which nothing else uses.
        unsafe {
            if CONTROL.read_volatile() & 1 == 0 {
                RELOAD.write_volatile(PERIOD as u32 - 1);
                CURRENT.write_volatile(0);
                // Processor clock, interrupt, on.
                CONTROL.write_volatile(0b111);
            }
            loop {
                let overflows = OVERFLOWS.load(Ordering::Relaxed);
                let left = u64::from(CURRENT.read_volatile());
                if overflows == OVERFLOWS.load(Ordering::Relaxed) {
                    return u64::from(overflows) * PERIOD + (PERIOD - left) % PERIOD;
                }
            }
        }
    }

    #[entry]
    fn main() -> ! {
        // SAFETY: the entry point runs once.
        crate::run(unsafe { super::memory() })
    }

    /// A fault ends the run instead of spinning.
    // SAFETY: touches nothing that the fault may have left half done, and does not return.
    #[exception]
    unsafe fn HardFault(_: &ExceptionFrame) -> ! {
        crate::fail(b"hard fault")
    }
}

#[cfg(target_arch = "riscv32")]
mod riscv {
    #[riscv_rt::entry]
    fn main() -> ! {
        // SAFETY: the entry point runs once.
        crate::run(unsafe { super::memory() })
    }

    /// A fault ends the run instead of spinning.
    #[unsafe(export_name = "ExceptionHandler")]
    extern "C" fn exception(_: &riscv_rt::TrapFrame) -> ! {
        crate::fail(b"exception")
    }
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    // The stack, the vector unit (which is off at reset), a table of exceptions that all end the run, and cleared statics
    // are not needed: QEMU loads the program into cleared memory.
    core::arch::global_asm!(
        ".section .text.start, \"ax\"",
        ".global _start",
        "_start:",
        "ldr x0, =_stack_start",
        "mov sp, x0",
        "mov x0, #(3 << 20)",
        "msr cpacr_el1, x0",
        "ldr x0, =vectors",
        "msr vbar_el1, x0",
        "isb",
        "bl {main}",
        ".balign 2048",
        "vectors:",
        ".rept 16",
        "b {fault}",
        ".balign 128",
        ".endr",
        main = sym main,
        fault = sym fault,
    );

    extern "C" fn main() -> ! {
        // SAFETY: the entry point runs once.
        crate::run(unsafe { super::memory() })
    }

    extern "C" fn fault() -> ! {
        crate::fail(b"exception")
    }
}

/// What the device calls itself: the processor it was built for.
#[allow(dead_code, reason = "not every program says")]
pub const NAME: &str = match option_env!("TEC_DEVICE") {
    Some(name) => name,
    None if cfg!(target_arch = "riscv32") => "riscv32imac",
    None if cfg!(target_arch = "aarch64") => "aarch64",
    None => "cortex-m",
};

/// Instructions executed since reset, where the processor counts them: RISC-V does, and QEMU's `-icount` makes it exact.
#[allow(dead_code, reason = "not every program asks")]
pub fn instructions() -> Option<u64> {
    #[cfg(target_arch = "riscv32")]
    {
        Some(::riscv::register::minstret::read64())
    }
    #[cfg(not(target_arch = "riscv32"))]
    {
        None
    }
}

/// As [`instructions`], under QEMU's `-icount shift=0` alone: there an instruction takes a nanosecond, and a Cortex-M's SysTick tells the
/// time, to a tick of 31 or 40.
#[allow(dead_code, reason = "not every program asks")]
pub fn emulated_instructions() -> Option<u64> {
    #[cfg(target_arch = "arm")]
    {
        Some(cortex_m::ticks() * cortex_m::TICK / 1000)
    }
    #[cfg(not(target_arch = "arm"))]
    {
        instructions()
    }
}

/// The encoder that the emulator put at `TEC_ENCODER_AT`, as long as its header says.
#[allow(dead_code, reason = "not every program has one")]
#[inline(always)]
pub fn encoder() -> Option<&'static [u8]> {
    let digits = option_env!("TEC_ENCODER_AT")?.strip_prefix("0x")?;
    let at = usize::from_str_radix(digits, 16).ok()? as *const u8;
    // SAFETY: the emulator has put a file there, in memory that this program uses for nothing else, whose bytes 12 to 15 are its
    // length.
    unsafe {
        let len = at.add(12).cast::<u32>().read_volatile();
        Some(core::slice::from_raw_parts(at, len as usize))
    }
}
