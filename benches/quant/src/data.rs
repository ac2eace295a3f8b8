//! Random matrices.

use anyhow::Result;
use ferrotune_quant::{Cpu, Format, Packed, Quantized, View};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rayon::prelude::*;

/// Values between −1 and 1.
pub fn uniform(count: usize, seed: u64) -> Vec<f32> {
    const PIECE: usize = 1 << 16;
    let mut values = vec![0.0; count];
    let pieces = values.par_chunks_mut(PIECE).enumerate();
    pieces.for_each(|(i, piece)| {
        let mut rng = StdRng::seed_from_u64(seed << 32 | i as u64);
        piece.fill_with(|| rng.random_range(-1.0..1.0));
    });
    values
}

/// Integers from −127 to 127, each row with a 127: int8 with a scale a row holds them as they are, with
/// scales of exactly 1.
pub fn integers(rows: usize, cols: usize, seed: u64) -> Vec<i8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut values: Vec<i8> = (0..rows * cols)
        .map(|_| rng.random_range(-127..=127))
        .collect();
    for row in values.chunks_mut(cols) {
        row[0] = 127;
    }
    values
}

/// Random weights `[rows, cols]` in a format, packed. They are a matrix of fewer rows, `repeat` times one
/// below the other: as large as one likes, and quick to make.
///
/// # Errors
/// A shape that the format or products do not support.
pub fn packed<F: Format>(
    format: F,
    [rows, cols]: [usize; 2],
    repeat: usize,
    cpu: &Cpu,
) -> Result<Packed<'static>> {
    let weights = uniform(rows / repeat * cols, 1);
    let once = Quantized::new(format, View::new(&weights, rows / repeat, cols)?, cpu)?;
    Ok(Packed::new(&repeated(&once, repeat)?, cpu)?)
}

/// Works where no two rows share a code's byte or a scale.
fn repeated<F: Format>(matrix: &Quantized<F>, times: usize) -> Result<Quantized<'static, F>> {
    let [rows, cols] = matrix.shape();
    Ok(Quantized::from_parts(
        matrix.format().clone(),
        [rows * times, cols],
        matrix.tensor(),
        matrix.codes().repeat(times),
        matrix.scales().repeat(times),
    )?)
}
