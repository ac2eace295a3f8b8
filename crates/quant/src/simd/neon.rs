//! NEON, and the same with SDOT: a vector is four registers of four lanes.

use super::{Simd, Work};
use core::arch::aarch64::*;
use core::array::from_fn;

#[derive(Clone, Copy)]
pub(crate) struct Neon<const DOTPROD: bool>(());

/// Does the work with NEON, which every AArch64 processor has.
///
/// # Safety
/// None is needed; the signature is that of the others.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn plain<W: Work>(work: W) -> W::Output {
    work.run(Neon::<false>(()))
}

/// Does the work with NEON and SDOT.
///
/// # Safety
/// The processor has SDOT.
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn dotprod<W: Work>(work: W) -> W::Output {
    work.run(Neon::<true>(()))
}

type I = [int32x4_t; 4];
type F = [float32x4_t; 4];
type B = [uint8x16_t; 4];

/// The products of four i8 with four, summed lane by lane. The intrinsic is not stable yet.
///
/// # Safety
/// The processor has SDOT.
#[inline(always)]
unsafe fn sdot(mut acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: registers only; the caller promises the instruction.
    unsafe {
        core::arch::asm!(
            ".arch_extension dotprod",
            "sdot {acc:v}.4s, {w:v}.16b, {a:v}.16b",
            acc = inout(vreg) acc,
            w = in(vreg) w,
            a = in(vreg) a,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

// SAFETY of every block below: NEON is part of AArch64, a `Neon<true>` proves SDOT, and pointers are
// the caller's promise.
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "one reason for all, stated above"
)]
impl<const DOTPROD: bool> Simd for Neon<DOTPROD> {
    const ROWS: usize = 4;
    const TILES: usize = 1;
    const BIASED: bool = false;

    type I = I;
    type F = F;
    type B = B;
    type W = [int8x16_t; 4];
    type T = uint8x16_t;
    type L = uint8x16x4_t;

    #[inline(always)]
    fn splat_i(self, value: i32) -> I {
        [unsafe { vdupq_n_s32(value) }; 4]
    }

    #[inline(always)]
    fn add_i(self, a: I, b: I) -> I {
        from_fn(|i| unsafe { vaddq_s32(a[i], b[i]) })
    }

    #[inline(always)]
    fn and(self, a: I, mask: i32) -> I {
        a.map(|a| unsafe { vandq_s32(a, vdupq_n_s32(mask)) })
    }

    #[inline(always)]
    fn shift_right(self, a: I, bits: u32) -> I {
        let bits = unsafe { vdupq_n_s32(-bits.cast_signed()) };
        a.map(|a| unsafe { vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), bits)) })
    }

    #[inline(always)]
    unsafe fn load_i(self, from: *const u8) -> I {
        from_fn(|i| unsafe { vreinterpretq_s32_u8(vld1q_u8(from.add(16 * i))) })
    }

    #[inline(always)]
    unsafe fn store_i(self, value: I, to: *mut u8) {
        for (i, value) in value.into_iter().enumerate() {
            unsafe { vst1q_u8(to.add(16 * i), vreinterpretq_u8_s32(value)) }
        }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> F {
        [unsafe { vdupq_n_f32(value) }; 4]
    }

    #[inline(always)]
    fn to_float(self, a: I) -> F {
        a.map(|a| unsafe { vcvtq_f32_s32(a) })
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        from_fn(|i| unsafe { vmulq_f32(a[i], b[i]) })
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        from_fn(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> F {
        from_fn(|i| unsafe { vreinterpretq_f32_u8(vld1q_u8(from.add(4 * i).cast())) })
    }

    #[inline(always)]
    unsafe fn store(self, value: F, to: *mut f32) {
        for (i, value) in value.into_iter().enumerate() {
            unsafe { vst1q_u8(to.add(4 * i).cast(), vreinterpretq_u8_f32(value)) }
        }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        let _ = at;
    }

    #[inline(always)]
    unsafe fn scales_f32(self, from: *const u8) -> F {
        unsafe { self.load(from.cast()) }
    }

    #[inline(always)]
    unsafe fn scales_f16(self, from: *const u8) -> F {
        from_fn(|i| unsafe {
            let bits = vmovl_u16(vreinterpret_u16_u8(vld1_u8(from.add(8 * i))));
            let magnitude = vshlq_n_u32::<13>(vandq_u32(bits, vdupq_n_u32(0x7fff)));
            let scaled = vmulq_f32(
                vreinterpretq_f32_u32(magnitude),
                vdupq_n_f32(f32::from_bits((112 + 127) << 23)),
            );
            let special = vcgeq_u32(magnitude, vdupq_n_u32(0x0f80_0000));
            let infinite = vorrq_u32(magnitude, vdupq_n_u32(0x7f80_0000));
            let value = vbslq_u32(special, infinite, vreinterpretq_u32_f32(scaled));
            let sign = vshlq_n_u32::<16>(vandq_u32(bits, vdupq_n_u32(0x8000)));
            vreinterpretq_f32_u32(vorrq_u32(value, sign))
        })
    }

    #[inline(always)]
    unsafe fn scales_e8m0(self, from: *const u8) -> F {
        let bytes = unsafe { self.widen(from) };
        bytes.map(|bytes| unsafe {
            // Exponent 0 is 2⁻¹²⁷, a denormal.
            let denormal = vandq_u32(vceqzq_u32(bytes), vdupq_n_u32(0x0040_0000));
            vreinterpretq_f32_u32(vorrq_u32(vshlq_n_u32::<23>(bytes), denormal))
        })
    }

    #[inline(always)]
    unsafe fn scales_e4m3(self, from: *const u8) -> F {
        let bytes = unsafe { self.widen(from) };
        bytes.map(|bytes| unsafe {
            let magnitude = vshlq_n_u32::<20>(vandq_u32(bytes, vdupq_n_u32(0x7f)));
            // The product with 2¹²⁰ moves the exponent's bias, and normalizes denormals.
            let scaled = vmulq_f32(
                vreinterpretq_f32_u32(magnitude),
                vdupq_n_f32(f32::from_bits((120 + 127) << 23)),
            );
            let sign = vshlq_n_u32::<24>(vandq_u32(bytes, vdupq_n_u32(0x80)));
            vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(scaled), sign))
        })
    }

    #[inline(always)]
    unsafe fn load_b(self, from: *const u8) -> B {
        from_fn(|i| unsafe { vld1q_u8(from.add(16 * i)) })
    }

    #[inline(always)]
    unsafe fn store_b(self, value: B, to: *mut u8) {
        for (i, value) in value.into_iter().enumerate() {
            unsafe { vst1q_u8(to.add(16 * i), value) }
        }
    }

    #[inline(always)]
    fn table(self, table: &[u8; 16]) -> uint8x16_t {
        unsafe { vld1q_u8(table.as_ptr()) }
    }

    #[inline(always)]
    fn nibbles(self, a: B, table: uint8x16_t) -> (B, B) {
        (
            a.map(|a| unsafe { vqtbl1q_u8(table, vandq_u8(a, vdupq_n_u8(15))) }),
            a.map(|a| unsafe { vqtbl1q_u8(table, vshrq_n_u8::<4>(a)) }),
        )
    }

    #[inline(always)]
    fn weights(self, a: B) -> [int8x16_t; 4] {
        a.map(|a| unsafe { vreinterpretq_s8_u8(veorq_u8(a, vdupq_n_u8(0x80))) })
    }

    #[inline(always)]
    unsafe fn dot(self, acc: I, w: [int8x16_t; 4], a: *const i8) -> I {
        let a = unsafe { vreinterpretq_s8_s32(vdupq_n_s32(a.cast::<i32>().read_unaligned())) };
        from_fn(|i| unsafe {
            if DOTPROD {
                return sdot(acc[i], w[i], a);
            }
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(w[i]), vget_low_s8(a)));
            let high = vpaddlq_s16(vmull_high_s8(w[i], a));
            vaddq_s32(acc[i], vpaddq_s32(low, high))
        })
    }

    #[inline(always)]
    fn levels(self, table: &[f32; 16]) -> uint8x16x4_t {
        let bytes = table.as_ptr().cast::<u8>();
        unsafe {
            uint8x16x4_t(
                vld1q_u8(bytes),
                vld1q_u8(bytes.add(16)),
                vld1q_u8(bytes.add(32)),
                vld1q_u8(bytes.add(48)),
            )
        }
    }

    #[inline(always)]
    fn lookup(self, table: uint8x16x4_t, at: I) -> F {
        at.map(|at| unsafe {
            // Entry n stands at bytes 4n to 4n + 3.
            let first = vmulq_u32(vreinterpretq_u32_s32(at), vdupq_n_u32(0x0404_0404));
            let bytes = vaddq_u32(first, vdupq_n_u32(0x0302_0100));
            vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(bytes)))
        })
    }

    #[inline(always)]
    fn lookup_byte(self, table: &[f32; 256], at: I) -> F {
        at.map(|at| unsafe {
            let mut places = [0_i32; 4];
            vst1q_s32(places.as_mut_ptr(), at);
            let values = places.map(|place| table[(place & 255) as usize]);
            vld1q_f32(values.as_ptr())
        })
    }

    #[inline(always)]
    fn pair_bf16(self, first: F, second: F) -> I {
        let round = |value: float32x4_t| unsafe {
            let bits = vreinterpretq_u32_f32(value);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)))
        };
        from_fn(|i| unsafe {
            let low = vshrq_n_u32::<16>(round(first[i]));
            let high = vandq_u32(round(second[i]), vdupq_n_u32(0xffff_0000));
            vreinterpretq_s32_u32(vorrq_u32(low, high))
        })
    }

    #[inline(always)]
    unsafe fn dot_bf16(self, acc: F, w: I, a: *const u8) -> F {
        let pair = unsafe { a.cast::<u32>().read_unaligned() };
        from_fn(|i| unsafe {
            let w = vreinterpretq_u32_s32(w[i]);
            let low = vreinterpretq_f32_u32(vshlq_n_u32::<16>(w));
            let high = vreinterpretq_f32_u32(vandq_u32(w, vdupq_n_u32(0xffff_0000)));
            let acc = vfmaq_n_f32(acc[i], low, f32::from_bits(pair << 16));
            vfmaq_n_f32(acc, high, f32::from_bits(pair & 0xffff_0000))
        })
    }
}

impl<const DOTPROD: bool> Neon<DOTPROD> {
    /// 16 bytes as 16 × u32.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    unsafe fn widen(self, from: *const u8) -> [uint32x4_t; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            let bytes = vld1q_u8(from);
            let low = vmovl_u8(vget_low_u8(bytes));
            let high = vmovl_u8(vget_high_u8(bytes));
            [
                vmovl_u16(vget_low_u16(low)),
                vmovl_high_u16(low),
                vmovl_u16(vget_low_u16(high)),
                vmovl_high_u16(high),
            ]
        }
    }
}
