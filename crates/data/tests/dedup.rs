//! Near duplicates against exact similarity, planted copies and the formula of the bands.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use ferrotune_data::dedup::{Bands, Clusters, DedupOptions, MinHash, Shingles, dedup};
use proptest::prelude::*;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    (rng.next_u64() % n as u64) as usize
}

/// Chinese characters at random.
fn text(rng: &mut ChaCha8Rng, length: usize) -> Vec<char> {
    let character =
        |rng: &mut ChaCha8Rng| char::from_u32(0x4e00 + below(rng, 3000) as u32).unwrap();
    (0..length).map(|_| character(rng)).collect()
}

/// Exact similarity of sets of windows of characters.
fn jaccard(a: &[char], b: &[char], n: usize) -> f64 {
    let set = |text: &[char]| -> HashSet<Vec<char>> {
        if text.len() < n {
            return HashSet::from([text.to_vec()]);
        }
        text.windows(n).map(<[char]>::to_vec).collect()
    };
    let (a, b) = (set(a), set(b));
    a.intersection(&b).count() as f64 / a.union(&b).count() as f64
}

/// A text and a copy of it whose end is another, so that their similarity is near `similarity`.
fn pair(rng: &mut ChaCha8Rng, length: usize, n: usize, similarity: f64) -> [Vec<char>; 2] {
    let original = text(rng, length);
    // Of `all` shingles each, `kept` are shared: kept ÷ (2 · all − kept).
    let all = (length - n + 1) as f64;
    let kept = 2.0 * all * similarity / (1.0 + similarity);
    let shared = kept.round() as usize + n - 1;
    let mut copy = original[..shared].to_vec();
    copy.extend(text(rng, length - shared));
    [original, copy]
}

/// Copies of true similarity 0.6 to 0.9 are found as often as the formula says.
#[test]
fn recall_is_that_of_the_formula() {
    const PAIRS: usize = 4000;
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for bands in [
        Bands { count: 14, rows: 8 },
        Bands::for_threshold(0.8, 128).unwrap(),
    ] {
        for similarity in [0.6, 0.7, 0.8, 0.9] {
            let (mut texts, mut expected) = (Vec::new(), 0.0);
            for _ in 0..PAIRS {
                let [original, copy] = pair(&mut rng, 200, 5, similarity);
                let exact = jaccard(&original, &copy, 5);
                assert!((exact - similarity).abs() < 0.02);
                expected += bands.probability(exact) / PAIRS as f64;
                texts.extend([original, copy].map(String::from_iter));
            }
            let options = DedupOptions {
                bands: Some(bands),
                ..DedupOptions::default()
            };
            let clusters = dedup(&texts, &options).unwrap();
            let found = (0..PAIRS).filter(|i| !clusters.stays(2 * i + 1)).count();
            let recall = found as f64 / PAIRS as f64;
            assert!(
                (recall - expected).abs() < 0.02,
                "{bands:?} {similarity}: {recall} for {expected}"
            );
            // Nothing else is joined: texts of different pairs share nothing.
            assert!((0..2 * PAIRS).all(|i| clusters.first_of(i) / 2 == i / 2));
        }
    }
}

/// A place of two signatures agrees with the probability of the similarity.
#[test]
fn signatures_estimate_similarity() {
    let minhash = MinHash::new(128, 9).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let (mut units, mut hashes) = (Vec::new(), Vec::new());
    for similarity in [0.1, 0.5, 0.8] {
        let (mut agreed, mut expected) = (0, 0.0);
        for _ in 0..500 {
            let texts = pair(&mut rng, 300, 5, similarity);
            let [left, right] = texts.each_ref().map(|text| {
                let mut signature = [0; 128];
                Shingles::Chars(5).hash(&String::from_iter(text), &mut units, &mut hashes);
                minhash.sign(&hashes, &mut signature);
                signature
            });
            agreed += left
                .iter()
                .zip(right)
                .filter(|(left, right)| *left == right)
                .count();
            expected += 128.0 * jaccard(&texts[0], &texts[1], 5);
        }
        let (agreed, all) = (agreed as f64, 500.0 * 128.0);
        assert!(
            (agreed - expected).abs() / all < 0.01,
            "{similarity}: {} for {}",
            agreed / all,
            expected / all
        );
    }
}

fn clusters_by_exact_similarity(texts: &[Vec<char>], n: usize, threshold: f64) -> Vec<usize> {
    let mut first: Vec<usize> = (0..texts.len()).collect();
    for i in 0..texts.len() {
        for j in 0..i {
            if jaccard(&texts[j], &texts[i], n) >= threshold {
                let (a, b) = (first[i], first[j]);
                first
                    .iter_mut()
                    .filter(|f| **f == a || **f == b)
                    .for_each(|f| *f = a.min(b));
            }
        }
    }
    first
}

fn firsts(clusters: &Clusters, texts: usize) -> Vec<usize> {
    (0..texts).map(|i| clusters.first_of(i)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// With bands of one row nearly every pair that shares a shingle is a candidate, and verified clusters are those
    /// of exact similarity.
    #[test]
    fn verified_clusters_are_connected_components(
        seed in any::<u64>(), n in 1_usize..5, threshold in 0.3_f64..0.95, texts in 1_usize..30,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut all: Vec<Vec<char>> = Vec::new();
        for _ in 0..texts {
            // Texts of few characters, and changed copies of those before.
            let mut text: Vec<char> = match all.is_empty() || below(&mut rng, 3) == 0 {
                true => (0..below(&mut rng, 40)).map(|_| ['天', '地', '人', 'a'][below(&mut rng, 4)]).collect(),
                false => all[below(&mut rng, all.len())].clone(),
            };
            for _ in 0..below(&mut rng, 3) {
                text.insert(below(&mut rng, text.len() + 1), '新');
            }
            all.push(text);
        }
        let options = DedupOptions {
            shingles: Shingles::Chars(n),
            threshold,
            bands: Some(Bands { count: 512, rows: 1 }),
            permutations: 512,
            verify: true,
            seed,
        };
        let strings: Vec<String> = all.iter().map(String::from_iter).collect();
        let found = dedup(&strings, &options).unwrap();
        prop_assert_eq!(firsts(&found, all.len()), clusters_by_exact_similarity(&all, n, threshold));
    }
}

#[test]
fn the_first_stays_and_threads_change_nothing() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let mut texts: Vec<String> = (0..500)
        .map(|_| String::from_iter(text(&mut rng, 100)))
        .collect();
    for copy in 0..300 {
        let again = texts[copy].clone();
        let at = 500 + below(&mut rng, copy + 1);
        texts.insert(at, again);
    }
    let options = DedupOptions::default();
    let clusters = dedup(&texts, &options).unwrap();
    assert_eq!(clusters.count(), 500);
    assert!((0..500).all(|i| clusters.stays(i)));
    assert!((500..800).all(|i| texts[clusters.first_of(i)] == texts[i]));
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        assert_eq!(pool.install(|| dedup(&texts, &options)).unwrap(), clusters);
    }
}

/// Neither all merged, since none has a shingle, nor all kept.
#[test]
fn texts_shorter_than_a_shingle_are_duplicates_of_their_likes() {
    let texts = ["", "好", "好的", "好", "", "好的好", "不好"];
    for verify in [false, true] {
        let options = DedupOptions {
            verify,
            ..DedupOptions::default()
        };
        let clusters = dedup(&texts, &options).unwrap();
        assert_eq!(firsts(&clusters, texts.len()), [0, 1, 2, 1, 0, 5, 6]);
    }
}

/// A chain is one cluster, though its ends are not alike; the first in it stays.
#[test]
fn clusters_that_share_a_text_are_one() {
    let texts = ["abcdefghij", "zzzzzzzzzz", "bcdefghijk", "cdefghijkl"];
    let options = DedupOptions {
        shingles: Shingles::Chars(1),
        threshold: 0.75,
        bands: Some(Bands {
            count: 128,
            rows: 1,
        }),
        verify: true,
        ..DedupOptions::default()
    };
    assert_eq!(firsts(&dedup(&texts, &options).unwrap(), 4), [0, 1, 0, 0]);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let refused = |options: DedupOptions, words: &[&str]| {
        let error = dedup(&["a"], &options).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    let options = DedupOptions::default;
    refused(
        DedupOptions {
            threshold: 1.5,
            ..options()
        },
        &["threshold = 1.5"],
    );
    refused(
        DedupOptions {
            permutations: 0,
            ..options()
        },
        &["permutations = 0"],
    );
    refused(
        DedupOptions {
            shingles: Shingles::Chars(0),
            ..options()
        },
        &["ngram = 0"],
    );
    let bands = Some(Bands { count: 20, rows: 8 });
    refused(
        DedupOptions { bands, ..options() },
        &["bands = 20", "places"],
    );
    assert_eq!(dedup::<&str>(&[], &options()).unwrap().count(), 0);
}
