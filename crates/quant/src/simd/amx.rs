//! AMX: products of whole tiles, 16 × 64 bytes, in registers of their own. Linux asks that a process
//! says once that it will use them. Rust's intrinsics are not stable, so the instructions are written
//! out; int8 and bf16 are there together on every processor that has either.

use core::arch::asm;
use core::sync::atomic::{AtomicU8, Ordering};

/// Rows of a tile: of activations, or fours (int8) or pairs (bf16) of columns of weights.
pub(crate) const ROWS: usize = 16;
/// Bytes of a tile.
pub(crate) const BYTES: usize = 1024;
/// Sums of a tile of activations and one of weights.
pub(crate) const SQUARE: usize = 256;

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
    /// Sums of 16 × 16; activations of 16 rows of `depth` bytes, at most 64, and weights for as many.
    ///
    /// # Safety
    /// [`allowed`] said yes. No other `Tiles` live on this thread.
    pub unsafe fn new(depth: usize) -> Self {
        #[repr(C, align(64))]
        struct Config {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        debug_assert!(depth.is_multiple_of(4) && (4..=64).contains(&depth));
        let mut config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        for tile in 0..8 {
            config.row_bytes[tile] = if matches!(tile, 4 | 5) {
                depth as u16
            } else {
                64
            };
            config.rows[tile] = if tile >= 6 { depth as u8 / 4 } else { 16 };
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

/// Two tiles of activations and two of weights, and those that follow them. A tile of activations is
/// 1024 bytes, and so is the way to the next.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    pub a: [*const u8; 2],
    pub b: [*const u8; 2],
    /// Bytes from a row of a tile of weights to the next.
    pub b_pitch: usize,
    /// How many tiles follow each other.
    pub steps: usize,
    /// Memory to ask for on the way, of both, and how many bytes further with every half step.
    pub next: [*const u8; 2],
    pub next_step: usize,
}

/// Four squares of 16 rows and 16 columns: begun by `$begin`, multiplied over all steps by `$dot`, and
/// written to `$out`. At least one step.
macro_rules! multiply {
    ([$($begin:literal),*], $dot:literal, $operands:ident, $out:ident) => {
        asm!(
            $($begin,)*
            "2:",
            "tileloadd tmm4, [{a0} + {line}*1]",
            "prefetcht1 [{n0}]",
            "tileloadd tmm6, [{b0} + {b_pitch}*1]",
            "tileloadd tmm7, [{b1} + {b_pitch}*1]",
            concat!($dot, " tmm0, tmm4, tmm6"),
            "prefetcht1 [{n1}]",
            "tileloadd tmm5, [{a1} + {line}*1]",
            concat!($dot, " tmm1, tmm4, tmm7"),
            "prefetcht1 [{n0} + {n_step}]",
            concat!($dot, " tmm2, tmm5, tmm6"),
            "prefetcht1 [{n1} + {n_step}]",
            concat!($dot, " tmm3, tmm5, tmm7"),
            "lea {n0}, [{n0} + 2*{n_step}]",
            "lea {n1}, [{n1} + 2*{n_step}]",
            "add {a0}, 1024",
            "add {a1}, 1024",
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
            b_pitch = in(reg) $operands.b_pitch,
            b_step = in(reg) $operands.b_pitch * 16,
            n0 = inout(reg) $operands.next[0] => _,
            n1 = inout(reg) $operands.next[1] => _,
            n_step = in(reg) $operands.next_step,
            steps = inout(reg) $operands.steps => _,
            out = in(reg) $out,
            line = in(reg) 64_usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
    ($first:ident, $dot:literal, $operands:ident, $out:ident) => {
        if $first {
            multiply!(
                ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
                $dot, $operands, $out
            );
        } else {
            multiply!(
                [
                    "tileloadd tmm0, [{out} + {line}*1]",
                    "tileloadd tmm1, [{out} + {line}*1 + 1024]",
                    "tileloadd tmm2, [{out} + {line}*1 + 2048]",
                    "tileloadd tmm3, [{out} + {line}*1 + 3072]"
                ],
                $dot, $operands, $out
            );
        }
    };
}

/// Adds the sums of u8 weights times i8 activations over all steps to `out`, or writes them if they are
/// the `first`: four squares of 16 rows and 16 columns, the first rows with each tile of weights, then
/// the others.
///
/// # Safety
/// The pointers are valid for what the steps read, `out` for 1024 values; the tiles are whole. At least
/// one step.
#[inline(always)]
pub(crate) unsafe fn int8(_: &Tiles, operands: Operands, first: bool, out: *mut i32) {
    debug_assert!(operands.steps > 0);
    // SAFETY: the caller's pointers; the loop ends after `steps`.
    unsafe { multiply!(first, "tdpbsud", operands, out) }
}

/// [`int8`] of bf16 weights and activations.
///
/// # Safety
/// That of [`int8`].
#[inline(always)]
pub(crate) unsafe fn bf16(_: &Tiles, operands: Operands, first: bool, out: *mut f32) {
    debug_assert!(operands.steps > 0);
    // SAFETY: the caller's pointers; the loop ends after `steps`.
    unsafe { multiply!(first, "tdpbf16ps", operands, out) }
}

/// Writes the sums of i8 weights times i8 activations over all steps to `out`: a square of the first
/// tiles, and one of the second. Rows of a tile of weights lie 64 bytes apart.
///
/// # Safety
/// The pointers are valid for what the steps read, `out` for 512 values. At least one step; tiles that
/// are not whole have one.
#[inline(always)]
pub(crate) unsafe fn squares(
    _: &Tiles,
    a: [*const u8; 2],
    b: [*const u8; 2],
    steps: usize,
    out: *mut i32,
) {
    debug_assert!(steps > 0);
    // SAFETY: the caller's pointers; the loop ends after `steps`.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{a0} + {line}*1]",
            "tileloadd tmm6, [{b0} + {line}*1]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a1} + {line}*1]",
            "tileloadd tmm7, [{b1} + {line}*1]",
            "tdpbssd tmm1, tmm5, tmm7",
            "add {a0}, 1024",
            "add {b0}, 1024",
            "add {a1}, 1024",
            "add {b1}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{out} + {line}*1], tmm0",
            "tilestored [{out} + {line}*1 + 1024], tmm1",
            a0 = inout(reg) a[0] => _,
            a1 = inout(reg) a[1] => _,
            b0 = inout(reg) b[0] => _,
            b1 = inout(reg) b[1] => _,
            steps = inout(reg) steps => _,
            out = in(reg) out,
            line = in(reg) 64_usize,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Copies codes that are 128 too large as what they stand for.
///
/// # Safety
/// Both have `bytes`.
#[inline(always)]
pub(crate) unsafe fn flip(from: *const u8, to: *mut u8, bytes: usize) {
    for i in 0..bytes {
        // SAFETY: the caller's pointers.
        unsafe { to.add(i).write(from.add(i).read() ^ 0x80) }
    }
}
