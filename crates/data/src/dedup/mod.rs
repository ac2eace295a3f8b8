//! Near duplicates: MinHash signatures, banded, joined into clusters.
//!
//! 1. A text is a set of [`Shingles`]: n characters or words that follow each other, each hashed to 32 bits.
//! 2. A [`Signature`](MinHash::sign) is, for each of P hash functions, the least value that it has on the set. Two
//!    texts agree in a place with about the probability of their Jaccard similarity s (Broder 1997).
//! 3. The signature is cut into b bands of r places. Texts that agree in a whole band are candidates, which texts of
//!    similarity s are with probability 1 − (1 − sʳ)ᵇ: [`Bands::probability`].
//! 4. Candidates are one cluster, as are clusters that share a text; with [`DedupOptions::verify`] only those whose
//!    Jaccard similarity, computed from the shingles themselves, reaches the threshold.
//! 5. Of a cluster the text that comes first stays.
//!
//! Texts that are shorter than a shingle have one, themselves: they are duplicates of nothing but their likes.

mod bands;
mod clusters;
mod minhash;
mod shingles;

pub use bands::Bands;
pub use clusters::{Clusters, DedupOptions, dedup};
pub use minhash::MinHash;
pub use shingles::Shingles;
