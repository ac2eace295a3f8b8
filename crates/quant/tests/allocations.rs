//! Hot paths take memory from the caller and allocate nothing.
#![allow(clippy::unwrap_used)]

use ferrotune_quant::{
    Activations, Cpu, Extent, Format, Grouping, Int8, Mode, Nf4, NonFinite, Packed, Quantized,
    Scratch, View, quantize_into, sizes,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which counts this thread's calls.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does everything.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = CALLS.get();
    work();
    CALLS.get() - before
}

fn weights() -> Vec<f32> {
    (0..64 * 256).map(|i| (i as f32 * 0.3).sin()).collect()
}

#[test]
fn quantizing_and_back_allocates_nothing() {
    quantizes(Nf4::new(64).unwrap());
    quantizes(Int8(Grouping::Row));
    quantizes(Int8(Grouping::Tensor));
}

fn quantizes<F: Format>(format: F) {
    let weights = weights();
    let view = View::new(&weights, 64, 256).unwrap();
    let cpu = Cpu::detect();
    let [codes, scales] = sizes(&format, 64, 256).unwrap();
    let nothing = format.fit(&format.tensor(0.0), Extent::NOTHING).0;
    let (mut codes, mut scales) = (vec![0; codes], vec![nothing; scales]);
    let count = allocations(|| {
        let refuse = NonFinite::Refuse;
        quantize_into(&format, view, &mut codes, &mut scales, refuse, &cpu).unwrap();
    });
    assert_eq!(count, 0, "{}", F::NAME);
    let quantized = Quantized::new(format, view, &cpu).unwrap();
    let mut out = vec![0.0_f32; 64 * 256];
    let count = allocations(|| quantized.dequantize_into(&mut out, &cpu).unwrap());
    assert_eq!(count, 0, "{}", F::NAME);
}

#[test]
fn products_of_a_shape_seen_before_allocate_nothing() {
    products(&Cpu::detect());
}

#[cfg(feature = "rayon")]
#[test]
fn nor_do_they_on_the_threads_of_rayon() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
    pool.unwrap()
        .install(|| products(&Cpu::detect().with_threads(&ferrotune_quant::Rayon)));
}

fn products(cpu: &Cpu) {
    let weights = weights();
    let view = View::new(&weights, 64, 256).unwrap();
    let quantized = Quantized::new(Nf4::new(64).unwrap(), view, cpu).unwrap();
    let packed = Packed::new(&quantized, cpu).unwrap();
    for mode in [
        Mode::F32,
        Mode::Bf16,
        Mode::Int8PerRow,
        Mode::Int8PerGroup,
        Mode::LlmInt8,
    ] {
        for m in [1, 5, 40] {
            let x: Vec<f32> = (0..m * 256).map(|i| (i as f32).cos() * 7.0).collect();
            let x = View::new(&x, m, 256).unwrap();
            let mut activations = Activations::new(&packed, mode).unwrap();
            let (mut scratch, mut y) = (Scratch::new(), vec![0.0; m * 64]);
            let mut product = || {
                activations.set(x, cpu).unwrap();
                packed
                    .gemm(&activations, &mut y, &mut scratch, cpu)
                    .unwrap();
            };
            product();
            assert_eq!(allocations(product), 0, "{mode:?} {m}");
        }
    }
}
