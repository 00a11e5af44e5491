//! Emulated machines, and whether this host has what they need.

use std::path::Path;

/// A machine that QEMU or Node emulates.
pub struct Machine {
    /// Its provider's name.
    pub name: &'static str,
    /// The firmware's file in the firmware directory.
    pub file: &'static str,
    /// Whether the firmware is an ELF file that may hold a defmt table.
    pub logs: bool,
    program: &'static str,
    arguments: &'static [&'static str],
    package: &'static str,
}

/// No screen, no devices that would need files; the firmware's input and output are the program's.
const SEMIHOSTING: &[&str] = &[
    "-display",
    "none",
    "-monitor",
    "none",
    "-serial",
    "none",
    "-semihosting-config",
    "enable=on,target=native",
    "-kernel",
];

/// All of them.
pub const MACHINES: &[Machine] = &[
    Machine {
        name: "cortex-m4f",
        file: "cortex-m4f.elf",
        logs: true,
        program: "qemu-system-arm",
        arguments: &["-M", "mps2-an386"],
        package: "qemu-system-arm",
    },
    Machine {
        name: "cortex-m7",
        file: "cortex-m7.elf",
        logs: true,
        program: "qemu-system-arm",
        arguments: &["-M", "mps2-an500"],
        package: "qemu-system-arm",
    },
    Machine {
        name: "cortex-m55",
        file: "cortex-m55.elf",
        logs: true,
        program: "qemu-system-arm",
        arguments: &["-M", "mps3-an547"],
        package: "qemu-system-arm",
    },
    Machine {
        name: "riscv32imac",
        file: "riscv32imac.elf",
        logs: true,
        program: "qemu-system-riscv32",
        arguments: &["-M", "virt", "-m", "64", "-bios", "none", "-icount", "shift=0"],
        package: "qemu-system-misc",
    },
    Machine {
        name: "aarch64",
        file: "aarch64.elf",
        logs: true,
        program: "qemu-system-aarch64",
        // Without dot-product instructions: the program must not use them.
        arguments: &["-M", "virt", "-cpu", "cortex-a72", "-m", "64", "-nic", "none"],
        package: "qemu-system-arm",
    },
    Machine {
        name: "aarch64-dotprod",
        file: "aarch64-dotprod.elf",
        logs: true,
        program: "qemu-system-aarch64",
        arguments: &["-M", "virt", "-cpu", "max", "-m", "64", "-nic", "none"],
        package: "qemu-system-arm",
    },
    Machine {
        name: "aarch64-i8mm",
        file: "aarch64-i8mm.elf",
        logs: true,
        program: "qemu-system-aarch64",
        arguments: &["-M", "virt", "-cpu", "max", "-m", "64", "-nic", "none"],
        package: "qemu-system-arm",
    },
    Machine {
        name: "wasm32",
        file: "wasm32.wasm",
        logs: false,
        program: "node",
        arguments: &[],
        package: "nodejs",
    },
];

impl Machine {
    /// The command that runs this firmware.
    ///
    /// # Errors
    /// What is missing, and how to get it.
    pub fn command(&self, firmware: &Path) -> Result<Vec<String>, String> {
        if !firmware.is_file() {
            return Err(format!("no firmware at {}: ci/firmware builds it", firmware.display()));
        }
        if !on_path(self.program) {
            let Self { program, package, .. } = self;
            return Err(format!(
                "{program} is not installed; on Debian: apt-get install {package}"
            ));
        }
        let mut words = vec![self.program.to_owned()];
        words.extend(self.arguments.iter().map(|&word| word.to_owned()));
        if self.program == "node" {
            words.push(firmware.with_file_name("run.mjs").display().to_string());
        } else {
            words.extend(SEMIHOSTING.iter().map(|&word| word.to_owned()));
        }
        words.push(firmware.display().to_string());
        Ok(words)
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
