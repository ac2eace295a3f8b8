use rayon::prelude::*;

use super::{Bands, MinHash, Shingles};
use crate::{Error, Result};

/// What is a near duplicate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DedupOptions {
    /// What of texts is compared.
    pub shingles: Shingles,
    /// Places of a signature.
    pub permutations: usize,
    /// The Jaccard similarity from which two texts are duplicates.
    pub threshold: f64,
    /// How signatures are cut; what [`Bands::for_threshold`] says if this is none.
    pub bands: Option<Bands>,
    /// Whether candidates must reach the threshold by their shingles, not by their signatures alone.
    pub verify: bool,
    /// What the hash functions follow from.
    pub seed: u64,
}

impl Default for DedupOptions {
    /// Five characters, 128 places, 0.8, not verified, seed 1.
    fn default() -> Self {
        Self {
            shingles: Shingles::Chars(5),
            permutations: 128,
            threshold: 0.8,
            bands: None,
            verify: false,
            seed: 1,
        }
    }
}

/// Which texts are duplicates of which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clusters {
    first: Vec<u32>,
}

impl Clusters {
    /// The text that stays of the cluster of text `i`: the first of its cluster, `i` itself if it stays.
    pub fn first_of(&self, i: usize) -> usize {
        self.first[i] as usize
    }

    /// Whether text `i` stays.
    pub fn stays(&self, i: usize) -> bool {
        self.first_of(i) == i
    }

    /// How many stay.
    pub fn count(&self) -> usize {
        (0..self.first.len()).filter(|i| self.stays(*i)).count()
    }
}

/// Finds the near duplicates among texts that are in memory, on all of rayon's threads. The result does not depend on
/// their number.
///
/// # Errors
/// Options that make no sense, more than 2³² texts.
pub fn dedup<T: AsRef<str> + Sync>(texts: &[T], options: &DedupOptions) -> Result<Clusters> {
    let DedupOptions { permutations, .. } = *options;
    options.shingles.check()?;
    let bands = match options.bands {
        Some(bands) => bands,
        None => Bands::for_threshold(options.threshold, permutations)?,
    };
    if bands.count == 0 || bands.rows == 0 || bands.count.saturating_mul(bands.rows) > permutations
    {
        return Err(Error::Option {
            option: "bands",
            value: bands.count,
            reason: "bands times rows are places of a signature, at least one",
        });
    }
    if u32::try_from(texts.len()).is_err() {
        return Err(Error::Option {
            option: "texts",
            value: texts.len(),
            reason: "at most 2^32 can be joined in memory",
        });
    }
    let minhash = MinHash::new(permutations, options.seed)?;
    let mut signatures = vec![0; texts.len() * permutations];
    let of_texts = signatures.par_chunks_mut(permutations).zip(texts);
    of_texts.for_each_init(Default::default, |(units, hashes), (signature, text)| {
        options.shingles.hash(text.as_ref(), units, hashes);
        minhash.sign(hashes, signature);
    });

    let mut forest = Forest::new(texts.len());
    let mut hashes = Hashes {
        texts,
        shingles: options.shingles,
        units: Vec::new(),
    };
    for band in 0..bands.count {
        let place = band * bands.rows;
        let key = |i: u32| &signatures[i as usize * permutations + place..][..bands.rows];
        for bucket in buckets(texts.len() as u32, key) {
            if options.verify {
                join_similar(&bucket, options.threshold, &mut forest, &mut hashes);
            } else {
                for other in &bucket[1..] {
                    forest.join(bucket[0], *other);
                }
            }
        }
    }
    Ok(Clusters {
        first: (0..texts.len() as u32).map(|i| forest.first(i)).collect(),
    })
}

/// Groups of two or more texts with equal keys, each in the order of the texts.
fn buckets<'k>(texts: u32, key: impl Fn(u32) -> &'k [u32] + Sync) -> Vec<Vec<u32>> {
    let mut order: Vec<(u64, u32)> = (0..texts)
        .into_par_iter()
        .map(|i| (hash_key(key(i)), i))
        .collect();
    order.par_sort_unstable();
    let mut buckets = Vec::new();
    for same_hash in order.chunk_by(|left, right| left.0 == right.0) {
        // Keys that share a hash are nearly always the same.
        let mut rest: Vec<u32> = same_hash.iter().map(|(_, i)| *i).collect();
        while rest.len() > 1 {
            let wanted = key(rest[0]);
            let (same, others): (Vec<u32>, Vec<u32>) =
                rest.into_iter().partition(|i| key(*i) == wanted);
            if same.len() > 1 {
                buckets.push(same);
            }
            rest = others;
        }
    }
    buckets
}

fn hash_key(key: &[u32]) -> u64 {
    key.iter().fold(0xcbf2_9ce4_8422_2325, |hash, part| {
        let mixed = (hash ^ u64::from(*part)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ mixed >> 29
    })
}

/// Joins the pairs of a bucket whose similarity reaches the threshold. Pairs that are joined already are not compared.
fn join_similar<T: AsRef<str>>(
    bucket: &[u32],
    threshold: f64,
    forest: &mut Forest,
    hashes: &mut Hashes<T>,
) {
    let mut sets: Vec<Option<Vec<u32>>> = vec![None; bucket.len()];
    for (n, right) in bucket.iter().enumerate() {
        for (m, left) in bucket[..n].iter().enumerate() {
            if forest.first(*left) == forest.first(*right) {
                continue;
            }
            for i in [m, n] {
                if sets[i].is_none() {
                    sets[i] = Some(hashes.set(bucket[i]));
                }
            }
            if let (Some(left_set), Some(right_set)) = (&sets[m], &sets[n])
                && jaccard(left_set, right_set) >= threshold
            {
                forest.join(*left, *right);
            }
        }
    }
}

/// The shingles of texts, once more.
struct Hashes<'t, T> {
    texts: &'t [T],
    shingles: Shingles,
    units: Vec<u32>,
}

impl<T: AsRef<str>> Hashes<'_, T> {
    /// Sorted, each once.
    fn set(&mut self, i: u32) -> Vec<u32> {
        let mut set = Vec::new();
        let text = self.texts[i as usize].as_ref();
        self.shingles.hash(text, &mut self.units, &mut set);
        set.sort_unstable();
        set.dedup();
        set
    }
}

/// |A ∩ B| ÷ |A ∪ B| of sorted sets, of which one is not empty.
fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j, both) = (i + 1, j + 1, both + 1),
        }
    }
    f64::from(both) / (a.len() + b.len() - both as usize) as f64
}

/// Disjoint sets; the root of a set is its first member.
struct Forest(Vec<u32>);

impl Forest {
    fn new(members: usize) -> Self {
        Self((0..members as u32).collect())
    }

    fn first(&mut self, mut i: u32) -> u32 {
        while self.0[i as usize] != i {
            let above = self.0[self.0[i as usize] as usize];
            self.0[i as usize] = above;
            i = above;
        }
        i
    }

    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.first(a), self.first(b));
        self.0[a.max(b) as usize] = a.min(b);
    }
}
