//! Plain Rust: what each operation means.

use super::{LANES, Simd};
use crate::element::{bf16_bits, f16_to_f32, fma};
use crate::float::{e4m3_to_f32, e8m0_to_f32};
use core::array::from_fn;

#[derive(Clone, Copy)]
pub(crate) struct Scalar;

type I = [i32; LANES];
type F = [f32; LANES];

impl Simd for Scalar {
    const ROWS: usize = 4;
    const TILES: usize = 1;
    const BIASED: bool = false;

    type I = I;
    type F = F;
    type B = [u8; 64];
    type W = [i8; 64];
    type T = [u8; 16];
    type L = [f32; 16];

    #[inline(always)]
    fn splat_i(self, value: i32) -> I {
        [value; LANES]
    }

    #[inline(always)]
    fn add_i(self, a: I, b: I) -> I {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    fn and(self, a: I, mask: i32) -> I {
        a.map(|a| a & mask)
    }

    #[inline(always)]
    fn shift_right(self, a: I, bits: u32) -> I {
        a.map(|a| (a.cast_unsigned() >> bits).cast_signed())
    }

    #[inline(always)]
    unsafe fn load_i(self, from: *const u8) -> I {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<I>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_i(self, value: I, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<I>().write_unaligned(value) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> F {
        [value; LANES]
    }

    #[inline(always)]
    fn to_float(self, a: I) -> F {
        a.map(|a| a as f32)
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        from_fn(|i| fma(a[i], b[i], c[i]))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> F {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, value: F, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<F>().write_unaligned(value) }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        let _ = at;
    }

    #[inline(always)]
    unsafe fn scales_f32(self, from: *const u8) -> F {
        // SAFETY: the caller's promise.
        unsafe { self.load(from.cast()) }
    }

    #[inline(always)]
    unsafe fn scales_f16(self, from: *const u8) -> F {
        // SAFETY: the caller's promise.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(f16_to_f32)
    }

    #[inline(always)]
    unsafe fn scales_e8m0(self, from: *const u8) -> F {
        // SAFETY: the caller's promise.
        let bytes = unsafe { from.cast::<[u8; LANES]>().read() };
        bytes.map(e8m0_to_f32)
    }

    #[inline(always)]
    unsafe fn scales_e4m3(self, from: *const u8) -> F {
        // SAFETY: the caller's promise.
        let bytes = unsafe { from.cast::<[u8; LANES]>().read() };
        bytes.map(e4m3_to_f32)
    }

    #[inline(always)]
    unsafe fn load_b(self, from: *const u8) -> [u8; 64] {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[u8; 64]>().read() }
    }

    #[inline(always)]
    unsafe fn store_b(self, value: [u8; 64], to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u8; 64]>().write(value) }
    }

    #[inline(always)]
    fn table(self, table: &[u8; 16]) -> [u8; 16] {
        *table
    }

    #[inline(always)]
    fn nibbles(self, a: [u8; 64], table: [u8; 16]) -> ([u8; 64], [u8; 64]) {
        (
            a.map(|a| table[usize::from(a & 15)]),
            a.map(|a| table[usize::from(a >> 4)]),
        )
    }

    #[inline(always)]
    fn weights(self, a: [u8; 64]) -> [i8; 64] {
        a.map(|a| (a ^ 0x80).cast_signed())
    }

    #[inline(always)]
    unsafe fn dot(self, acc: I, w: [i8; 64], a: *const i8) -> I {
        // SAFETY: the caller's promise.
        let a = unsafe { a.cast::<[i8; 4]>().read() };
        from_fn(|lane| {
            let product = |i: usize| i32::from(w[4 * lane + i]) * i32::from(a[i]);
            acc[lane].wrapping_add(product(0) + product(1) + product(2) + product(3))
        })
    }

    #[inline(always)]
    fn levels(self, table: &[f32; 16]) -> [f32; 16] {
        *table
    }

    #[inline(always)]
    fn lookup(self, table: [f32; 16], at: I) -> F {
        at.map(|at| table[(at & 15) as usize])
    }

    #[inline(always)]
    fn lookup_byte(self, table: &[f32; 256], at: I) -> F {
        at.map(|at| table[(at & 255) as usize])
    }

    #[inline(always)]
    fn pair_bf16(self, first: F, second: F) -> I {
        from_fn(|i| {
            let pair = u32::from(bf16_bits(first[i])) | u32::from(bf16_bits(second[i])) << 16;
            pair.cast_signed()
        })
    }

    #[inline(always)]
    unsafe fn dot_bf16(self, acc: F, w: I, a: *const u8) -> F {
        // SAFETY: the caller's promise.
        let a = unsafe { a.cast::<u32>().read_unaligned() };
        let low = |pair: u32| f32::from_bits(pair << 16);
        let high = |pair: u32| f32::from_bits(pair & 0xffff_0000);
        from_fn(|i| {
            let w = w[i].cast_unsigned();
            fma(high(w), high(a), fma(low(w), low(a), acc[i]))
        })
    }
}
