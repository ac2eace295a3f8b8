//! A matrix as the int8 kernels walk through it.

use crate::format::Levels;
use crate::matrix::ScaleType;
use crate::packed::Packed;
use crate::simd::{self, LANES, Simd};

/// Everything that a loop asks for, by value.
#[derive(Clone, Copy)]
pub(super) struct Weights<S: Simd> {
    pub codes: *const u8,
    scales: *const u8,
    pub shifts: *const f32,
    /// What nibbles stand for.
    #[cfg(target_arch = "x86_64")]
    pub signed: S::T,
    /// The same, 128 too large.
    pub biased: S::T,
    pub factor: f32,
    pub rows: usize,
    pub depth: usize,
    pub nibbles: bool,
    pub shifted: bool,
    scale_type: ScaleType,
    pub groups: usize,
    /// Eights of columns in a group, and in the last.
    pub eights: usize,
    pub last_eights: usize,
    /// Bytes of a tile's codes.
    pub tile_bytes: usize,
    /// How many bytes ahead of the codes to ask memory for more.
    pub ahead: usize,
}

impl<S: Simd> Weights<S> {
    #[inline(always)]
    pub fn new(simd: S, matrix: &Packed) -> Self {
        let structure = &matrix.structure;
        let (steps, unit) = match &structure.levels {
            Levels::Table { steps, unit, .. } => (*steps, *unit),
            _ => ([0; 16], 1.0),
        };
        let signed = steps.map(i8::cast_unsigned);
        let groups = matrix.groups();
        Self {
            codes: matrix.codes.as_ptr(),
            scales: matrix.scales.as_ptr(),
            shifts: matrix.shifts.as_ptr().cast(),
            #[cfg(target_arch = "x86_64")]
            signed: simd.table(&signed),
            biased: simd.table(&signed.map(|step| step ^ 0x80)),
            factor: unit * structure.factor,
            rows: matrix.rows,
            depth: matrix.depth(),
            nibbles: structure.nibbles,
            shifted: structure.shifted,
            scale_type: structure.scales,
            groups,
            eights: structure.group / 8,
            last_eights: if groups == 0 {
                0
            } else {
                matrix.group_depth(groups - 1) / 8
            },
            tile_bytes: matrix.tile_bytes(),
            ahead: simd::bytes_ahead(),
        }
    }

    #[inline(always)]
    pub fn eights(&self, group: usize) -> usize {
        if group + 1 == self.groups {
            self.last_eights
        } else {
            self.eights
        }
    }

    /// Where a tile's group has its scales and shifts.
    #[inline(always)]
    pub fn place(&self, tile: usize, group: usize) -> usize {
        (tile * self.groups + group) * LANES
    }

    /// Scales of a tile's group.
    ///
    /// # Safety
    /// `place` is of this matrix.
    #[inline(always)]
    pub unsafe fn scale(&self, simd: S, place: usize) -> S::F {
        let at = place * self.scale_type.bytes();
        // Prefetching may name any address.
        simd.prefetch(self.scales.wrapping_add(at + self.ahead / 4));
        // SAFETY: the matrix has scales for each tile and group.
        unsafe { load_scales(simd, self.scale_type, self.scales.add(at)) }
    }

    /// Unpacks `eights` times eight columns of nibbles of a tile to bytes.
    ///
    /// # Safety
    /// `from` has 64 bytes for each eight, `to` room for 128.
    #[inline(always)]
    pub unsafe fn unpack(
        simd: S,
        table: S::T,
        mut from: *const u8,
        mut to: *mut u8,
        eights: usize,
    ) {
        for _ in 0..eights {
            // SAFETY: the caller's pointers.
            unsafe {
                let (low, high) = simd.nibbles(simd.load_b(from), table);
                simd.store_b(low, to);
                simd.store_b(high, to.add(64));
                (from, to) = (from.add(64), to.add(128));
            }
        }
    }
}

/// 16 scales.
///
/// # Safety
/// `from` has 16 of that type.
#[inline(always)]
pub(super) unsafe fn load_scales<S: Simd>(simd: S, scales: ScaleType, from: *const u8) -> S::F {
    // SAFETY: the caller's pointer.
    unsafe {
        match scales {
            ScaleType::F32 => simd.scales_f32(from),
            ScaleType::F16 => simd.scales_f16(from),
            ScaleType::E8M0 => simd.scales_e8m0(from),
            ScaleType::E4M3 => simd.scales_e4m3(from),
        }
    }
}

/// Where a sum begins, so that weights which are 128 too large come out right.
///
/// # Safety
/// `bias` can be read.
#[inline(always)]
pub(super) unsafe fn begin<S: Simd>(simd: S, bias: *const i32) -> S::I {
    // SAFETY: the caller's pointer.
    simd.splat_i(if S::BIASED { unsafe { *bias } } else { 0 })
}

/// Asks for the part `part` of `parts` of some bytes that will be needed soon.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn prefetch_part<S: Simd>(
    simd: S,
    from: *const u8,
    bytes: usize,
    part: usize,
    parts: usize,
) {
    let each = bytes.div_ceil(parts).next_multiple_of(64);
    for at in (part * each..bytes.min((part + 1) * each)).step_by(64) {
        simd.prefetch(from.wrapping_add(at));
    }
}
