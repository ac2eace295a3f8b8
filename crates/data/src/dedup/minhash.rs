use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::{Error, Result};

/// Hash functions that are computed at a time: their values, factors and addends fill the registers of AVX-512.
const LANES: usize = 128;

/// P hash functions, x ↦ a·x + b modulo 2³² with a odd, over hashed shingles.
#[derive(Clone, Debug)]
pub struct MinHash {
    /// Of each function, by 128; the last are filled up.
    functions: Vec<Functions>,
    permutations: usize,
}

#[derive(Clone, Debug)]
#[repr(align(64))]
struct Functions {
    a: [u32; LANES],
    b: [u32; LANES],
}

impl MinHash {
    /// `permutations` functions that follow from a seed, the same on every machine.
    ///
    /// # Errors
    /// No function.
    pub fn new(permutations: usize, seed: u64) -> Result<Self> {
        if permutations == 0 {
            return Err(Error::Option {
                option: "permutations",
                value: 0,
                reason: "a signature has one place at least",
            });
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let functions = (0..permutations.div_ceil(LANES)).map(|_| Functions {
            a: std::array::from_fn(|_| rng.next_u32() | 1),
            b: std::array::from_fn(|_| rng.next_u32()),
        });
        Ok(Self {
            functions: functions.collect(),
            permutations,
        })
    }

    /// Places of a signature.
    pub fn permutations(&self) -> usize {
        self.permutations
    }

    /// Writes the signature of a set of hashed shingles: for each function the least value on the set, `u32::MAX`
    /// where that is empty. `signature` has [`permutations`](Self::permutations) places; others stay as they are.
    pub fn sign(&self, shingles: &[u32], signature: &mut [u32]) {
        for (functions, signature) in self.functions.iter().zip(signature.chunks_mut(LANES)) {
            let least = least(functions, shingles);
            signature.copy_from_slice(&least[..signature.len()]);
        }
    }
}

fn least(functions: &Functions, shingles: &[u32]) -> [u32; LANES] {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has what the function is compiled for.
            return unsafe { least_avx512(functions, shingles) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has what the function is compiled for.
            return unsafe { least_avx2(functions, shingles) };
        }
    }
    least_of::<LANES>(functions, shingles)
}

/// All functions at once: 8 registers each for values, factors and addends.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn least_avx512(functions: &Functions, shingles: &[u32]) -> [u32; LANES] {
    least_of::<128>(functions, shingles)
}

/// 16 registers hold 32 functions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn least_avx2(functions: &Functions, shingles: &[u32]) -> [u32; LANES] {
    least_of::<32>(functions, shingles)
}

/// `N` functions at a time over all shingles: what is specified, in a form that compilers turn into vectors.
#[inline(always)]
fn least_of<const N: usize>(functions: &Functions, shingles: &[u32]) -> [u32; LANES] {
    let mut all = [u32::MAX; LANES];
    let (a, b) = (
        functions.a.as_chunks::<N>().0,
        functions.b.as_chunks::<N>().0,
    );
    for ((least, a), b) in all.as_chunks_mut::<N>().0.iter_mut().zip(a).zip(b) {
        let mut values = *least;
        for shingle in shingles {
            for i in 0..N {
                values[i] = values[i].min(a[i].wrapping_mul(*shingle).wrapping_add(b[i]));
            }
        }
        *least = values;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// On every instruction set, for every number of functions.
        #[test]
        fn a_signature_is_the_least_of_each_function(
            shingles in proptest::collection::vec(any::<u32>(), 0..300),
            permutations in 1_usize..300,
            seed in any::<u64>(),
        ) {
            let minhash = MinHash::new(permutations, seed).unwrap();
            let mut found = vec![0; permutations];
            minhash.sign(&shingles, &mut found);
            for (i, found) in found.iter().enumerate() {
                let Functions { a, b } = &minhash.functions[i / LANES];
                let values = shingles.iter().map(|x| x.wrapping_mul(a[i % LANES]).wrapping_add(b[i % LANES]));
                prop_assert_eq!(*found, values.min().unwrap_or(u32::MAX));
            }
            for functions in &minhash.functions {
                let expected = least_of::<1>(functions, &shingles);
                #[cfg(target_arch = "x86_64")]
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has it.
                    prop_assert_eq!(unsafe { least_avx2(functions, &shingles) }, expected);
                }
                prop_assert_eq!(least(functions, &shingles), expected);
            }
        }
    }

    #[test]
    fn a_seed_is_the_same_functions_for_good() {
        let mut signature = [0; 3];
        MinHash::new(3, 1).unwrap().sign(&[1, 2, 3], &mut signature);
        assert_eq!(signature, [1_504_084_446, 1_170_821_842, 1_824_481_612]);
    }
}
