use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use sha2::{Digest, Sha256};

/// The order of a stream's examples, or of its bins, in an epoch, fixed for good, so that a run resumes under a later
/// release:
///
/// 1. The key of ChaCha8 (nonce 0, counter from 0) is the SHA-256 of the ASCII text `ferrotune-data/shuffle/1` for
///    examples, `ferrotune-data/bins/1` for bins, followed by `seed`, `epoch` and `stream`, each as 8 bytes, the
///    lowest first.
/// 2. Fisher–Yates from the back: for i = n − 1 down to 1, swap i with floor(x · (i + 1) / 2⁶⁴), x the next 64 bits.
pub(crate) fn shuffle<T>(items: &mut [T], purpose: Purpose, seed: u64, epoch: u64, stream: u64) {
    let mut key = Sha256::new_with_prefix(match purpose {
        Purpose::Examples => "ferrotune-data/shuffle/1",
        Purpose::Bins => "ferrotune-data/bins/1",
    });
    for part in [seed, epoch, stream] {
        key.update(part.to_le_bytes());
    }
    let mut rng = ChaCha8Rng::from_seed(key.finalize().into());
    for i in (1..items.len()).rev() {
        let scaled = u128::from(rng.next_u64()) * (i as u128 + 1);
        items.swap(i, (scaled >> 64) as usize);
    }
}

/// What is shuffled.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    Examples,
    Bins,
}

#[cfg(test)]
mod tests {
    use super::{Purpose, shuffle};

    fn order(seed: u64, epoch: u64, stream: u64) -> Vec<usize> {
        let mut items: Vec<usize> = (0..20).collect();
        shuffle(&mut items, Purpose::Examples, seed, epoch, stream);
        items
    }

    /// Numbers of an implementation in another language, made from the description above.
    #[test]
    fn the_order_is_the_documented_one() {
        assert_eq!(
            order(42, 0, 0),
            [
                1, 0, 19, 14, 13, 7, 5, 18, 11, 12, 3, 16, 2, 6, 15, 4, 17, 9, 8, 10
            ]
        );
        assert_eq!(
            order(u64::MAX, 3, 239),
            [
                16, 19, 7, 9, 17, 12, 5, 11, 10, 2, 13, 4, 15, 18, 8, 14, 3, 0, 1, 6
            ]
        );
    }
}
