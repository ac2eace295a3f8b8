//! AMX: products of whole tiles, 16 × 64 bytes, in registers of their own. Linux asks that a process
//! says once that it will use them. Rust's intrinsics are not stable, so the instructions are written
//! out; int8 and bf16 are there together on every processor that has either.

use core::arch::asm;
use core::sync::atomic::{AtomicU8, Ordering};

/// Rows of activations that a tile holds.
pub(crate) const ROWS: usize = 16;
/// Rows and columns of the block that [`int8`] and [`bf16`] compute.
pub(crate) const BLOCK_ROWS: usize = 2 * ROWS;

/// Whether this process may use AMX int8 and bf16: the processor has it, the system keeps it between
/// threads, and said yes.
pub(crate) fn allowed() -> bool {
    static KNOWN: AtomicU8 = AtomicU8::new(0);
    match KNOWN.load(Ordering::Relaxed) {
        0 => {
            let allowed = ask();
            KNOWN.store(1 + u8::from(allowed), Ordering::Relaxed);
            allowed
        }
        known => known == 2,
    }
}

#[cfg(all(target_os = "linux", feature = "std", not(miri)))]
fn ask() -> bool {
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    const ALL: u32 = AMX_BF16 | AMX_TILE | AMX_INT8;
    if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & ALL != ALL {
        return false;
    }
    const ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: a system call that asks for a permission and touches no memory; the registers are those
    // that the kernel's calling convention names.
    unsafe {
        asm!(
            "syscall",
            inout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(all(target_os = "linux", feature = "std", not(miri))))]
fn ask() -> bool {
    false
}

/// The shapes of the eight tiles, while it lives. Registers 0 to 3 hold sums, 4 and 5 activations, 6
/// and 7 weights.
pub(crate) struct Tiles(());

impl Tiles {
    /// All of 16 rows of 64 bytes.
    ///
    /// # Safety
    /// [`allowed`] said yes. No other `Tiles` live on this thread.
    pub unsafe fn new() -> Self {
        #[repr(C, align(64))]
        struct Config {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        for tile in 0..8 {
            config.row_bytes[tile] = 64;
            config.rows[tile] = 16;
        }
        // SAFETY: the configuration is 64 bytes of a valid form, read at once.
        unsafe {
            asm!("ldtilecfg [{config}]", config = in(reg) &raw const config, options(nostack, readonly));
        }
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: there are tiles, see `new`.
        unsafe { asm!("tilerelease", options(nomem, nostack)) }
    }
}

/// Two times 16 rows of activations and two tiles of weights.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// The first of each 16 rows.
    pub a: [*const u8; 2],
    /// Bytes from a row to the next.
    pub a_pitch: usize,
    pub b: [*const u8; 2],
    /// Bytes from four columns (int8) or two (bf16) to the next.
    pub b_pitch: usize,
    /// Steps of 64 bytes of a row.
    pub steps: usize,
}

/// Four squares of 16 rows and 16 columns: begun by `$begin`, multiplied over all steps by `$dot`, and
/// written to `$out`. At least one step.
macro_rules! multiply {
    ([$($begin:literal),*], $dot:literal, $operands:ident, $out:ident) => {
        asm!(
            $($begin,)*
            "2:",
            "tileloadd tmm4, [{a0} + {a_pitch}*1]",
            "tileloadd tmm6, [{b0} + {b_pitch}*1]",
            "tileloadd tmm7, [{b1} + {b_pitch}*1]",
            concat!($dot, " tmm0, tmm4, tmm6"),
            "tileloadd tmm5, [{a1} + {a_pitch}*1]",
            concat!($dot, " tmm1, tmm4, tmm7"),
            concat!($dot, " tmm2, tmm5, tmm6"),
            concat!($dot, " tmm3, tmm5, tmm7"),
            "add {a0}, {a_step}",
            "add {a1}, {a_step}",
            "add {b0}, {b_step}",
            "add {b1}, {b_step}",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{out} + {line}*1], tmm0",
            "tilestored [{out} + {line}*1 + 1024], tmm1",
            "tilestored [{out} + {line}*1 + 2048], tmm2",
            "tilestored [{out} + {line}*1 + 3072], tmm3",
            a0 = inout(reg) $operands.a[0] => _,
            a1 = inout(reg) $operands.a[1] => _,
            b0 = inout(reg) $operands.b[0] => _,
            b1 = inout(reg) $operands.b[1] => _,
            a_pitch = in(reg) $operands.a_pitch,
            b_pitch = in(reg) $operands.b_pitch,
            a_step = in(reg) 64_usize,
            b_step = in(reg) $operands.b_pitch * 16,
            steps = inout(reg) $operands.steps => _,
            out = in(reg) $out,
            line = in(reg) 64_usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// Writes the sums of u8 weights times i8 activations over all steps: four squares of 16 rows and 16
/// columns, rows first 0 to 15 then 16 to 31, each with the two tiles in order.
///
/// # Safety
/// The pointers are valid for what the steps read, `out` for 1024 values. At least one step.
#[inline(always)]
pub(crate) unsafe fn int8(_: &Tiles, operands: Operands, out: *mut i32) {
    debug_assert!(operands.steps > 0);
    // SAFETY: the caller's pointers; the loop ends after `steps`.
    unsafe {
        multiply!(
            [
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3"
            ],
            "tdpbsud",
            operands,
            out
        );
    }
}

/// Adds the products of bf16 weights and activations over all steps to the sums at `out`, four squares
/// as in [`int8`].
///
/// # Safety
/// As [`int8`].
#[inline(always)]
pub(crate) unsafe fn bf16(_: &Tiles, operands: Operands, out: *mut f32) {
    debug_assert!(operands.steps > 0);
    // SAFETY: the caller's pointers; the loop ends after `steps`.
    unsafe {
        multiply!(
            [
                "tileloadd tmm0, [{out} + {line}*1]",
                "tileloadd tmm1, [{out} + {line}*1 + 1024]",
                "tileloadd tmm2, [{out} + {line}*1 + 2048]",
                "tileloadd tmm3, [{out} + {line}*1 + 3072]"
            ],
            "tdpbf16ps",
            operands,
            out
        );
    }
}
