//! A serial port: Arm's CMSDK UART, as the MPS2 boards have it. For another board, copy this file and change the registers.

use core::ptr::{read_volatile, write_volatile};

use tec_device::Transport;

/// The first UART of AN386 and AN500.
const BASE: usize = 0x4000_4000;
const DATA: usize = BASE;
const STATE: usize = BASE + 4;
const CONTROL: usize = BASE + 8;
const DIVIDER: usize = BASE + 16;

const TRANSMIT_FULL: u32 = 1;
const RECEIVE_FULL: u32 = 2;
const ENABLE_BOTH: u32 = 3;
/// 25 MHz / 115,200.
const CLOCKS_A_BIT: u32 = 217;

fn read(register: usize) -> u32 {
    // SAFETY: a register of the UART, by the board's memory map.
    unsafe { read_volatile(register as *const u32) }
}

fn write(register: usize, value: u32) {
    // SAFETY: as above.
    unsafe { write_volatile(register as *mut u32, value) }
}

/// The link.
pub struct Port;

impl Port {
    /// Switches the UART on.
    pub fn open() -> Option<Self> {
        write(DIVIDER, CLOCKS_A_BIT);
        write(CONTROL, ENABLE_BOTH);
        Some(Self)
    }
}

impl Transport for Port {
    fn receive(&mut self, bytes: &mut [u8]) -> bool {
        for byte in bytes {
            while read(STATE) & RECEIVE_FULL == 0 {}
            *byte = read(DATA) as u8;
        }
        true
    }

    fn send(&mut self, bytes: &[u8]) -> bool {
        send(bytes)
    }
}

/// Sends bytes to the host.
pub fn send(bytes: &[u8]) -> bool {
    for &byte in bytes {
        while read(STATE) & TRANSMIT_FULL != 0 {}
        write(DATA, byte.into());
    }
    true
}

/// The host has said goodbye: the next one may come.
pub fn after() {}

/// The end after a failure: the host has been told, and the board waits for its reset.
pub fn end() -> ! {
    loop {
        core::hint::spin_loop();
    }
}
