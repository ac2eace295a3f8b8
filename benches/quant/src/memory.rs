//! What memory can do: a plain read, and a plain copy, by the threads that the products run on.

use ferrotune_quant::{Parallel, Rayon};
use std::hint::black_box;
use std::sync::Mutex;

/// Bytes that a thread takes at a time.
const PIECE: usize = 1 << 19;

/// Reads all of it once.
pub fn read(parts: &[&[u8]]) {
    let pieces = Mutex::new(parts.iter().flat_map(|part| part.chunks(PIECE)));
    on_threads(&pieces, |piece| {
        black_box(sum(piece));
    });
}

/// Copies `from` to `to`, which is as long.
pub fn copy(from: &[f32], to: &mut [f32]) {
    let pieces = to.chunks_mut(PIECE / 4).zip(from.chunks(PIECE / 4));
    on_threads(&Mutex::new(pieces), |(to, from)| to.copy_from_slice(from));
}

fn on_threads<T>(pieces: &Mutex<impl Iterator<Item = T> + Send>, work: impl Fn(T) + Sync) {
    let next = || pieces.lock().ok()?.next();
    Rayon.run(Rayon.threads(), &|_| {
        while let Some(piece) = next() {
            work(piece);
        }
    });
}

fn sum(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { sum_avx512(bytes) };
    }
    sum_of(bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(bytes: &[u8]) -> u64 {
    sum_of(bytes)
}

/// Of the whole words; a plain fold, which compilers turn into vectors and several sums.
#[inline(always)]
fn sum_of(bytes: &[u8]) -> u64 {
    let words = bytes.as_chunks::<8>().0.iter();
    words.fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_words_count() {
        let bytes: Vec<u8> = (0..8 * 70).map(|i| (i % 251) as u8).collect();
        assert_eq!(sum(&bytes), sum_of(&bytes));
        assert_eq!(
            sum(&[1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 9]),
            3 + (1 << 56)
        );
        let mut to = vec![0.0; 100_000];
        let from: Vec<f32> = (0..100_000_u32).map(|i| i as f32).collect();
        copy(&from, &mut to);
        assert_eq!(from, to);
    }
}
