//! The order of samples: every row once an epoch, the same at any number of ranks and after any resume.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use ferrotune_data::{
    Batch, Bin, Dataset, Error, Example, IGNORE, StreamOptions, StreamState, Streams, for_rank,
    micro_batches, pack,
};
use proptest::prelude::*;

/// Examples of which every token says whose it is.
fn dataset(lengths: &[usize]) -> Arc<Dataset> {
    let example = |(number, &length): (usize, &usize)| {
        Example::new(
            (0..length).map(|at| (number * 1000 + at) as u32).collect(),
            vec![1.0; length],
        )
    };
    Arc::new(Dataset::new(lengths.iter().enumerate().map(example).collect()).unwrap())
}

fn options(virtual_streams: usize, global_batch: usize) -> StreamOptions {
    StreamOptions {
        virtual_streams,
        global_batch,
        max_length: 64,
        seed: 7,
        epochs: Some(3),
        ..StreamOptions::default()
    }
}

fn rest(streams: &mut Streams) -> Vec<Vec<Bin>> {
    std::iter::from_fn(|| streams.next_batch()).collect()
}

/// The examples of a bin, after a check that each is whole.
fn numbers(bin: &Bin, dataset: &Dataset) -> Vec<usize> {
    let mut start = 0;
    let mut numbers = Vec::new();
    for &length in &bin.lengths {
        let end = start + length as usize;
        let number = bin.ids[start] as usize / 1000;
        let example = &dataset.examples()[number];
        assert_eq!(
            (&bin.ids[start..end], &bin.weights[start..end]),
            (&example.ids[..], &example.weights[..])
        );
        numbers.push(number);
        start = end;
    }
    assert_eq!((start, start), (bin.ids.len(), bin.weights.len()));
    numbers
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(2usize..=64, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_row_once_an_epoch(lengths in lengths(), v in 1usize..12, g in 1usize..9, shuffle: bool, pack: bool) {
        let dataset = dataset(&lengths);
        let options = StreamOptions { shuffle, pack, ..options(v, g) };
        let mut streams = Streams::new(dataset.clone(), options).unwrap();
        let total = streams.total_batches().unwrap();
        let mut orders = Vec::new();
        let mut batches = 0;
        for epoch in 0..3 {
            let mut seen = Vec::new();
            while streams.state().epoch == epoch {
                let batch = streams.next_batch().unwrap();
                batches += 1;
                prop_assert_eq!(batch.len(), g);
                let filling = batch.iter().position(Bin::is_empty).unwrap_or(g);
                prop_assert!(batch[filling..].iter().all(Bin::is_empty) && filling > 0);
                prop_assert!(filling == g || streams.state().epoch == epoch + 1, "only an epoch's last batch is filled up");
                for bin in &batch {
                    prop_assert!(bin.len() <= 64 && (pack || bin.lengths.len() <= 1));
                    let rows = numbers(bin, &dataset);
                    prop_assert!(rows.windows(2).all(|pair| pair[0] % v == pair[1] % v), "a bin of two streams");
                    seen.extend(rows);
                }
            }
            orders.push(seen.clone());
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
        }
        prop_assert!(streams.next_batch().is_none());
        prop_assert_eq!(batches, total);
        if !shuffle {
            prop_assert_eq!(&orders[0], &orders[1]);
        } else if lengths.len() > 8 * v {
            prop_assert_ne!(&orders[0], &orders[1]);
        }
    }

    #[test]
    fn resuming_changes_nothing(lengths in lengths(), v in 1usize..12, g in 1usize..9, at in 0usize..1000, then in 0usize..1000) {
        let dataset = dataset(&lengths);
        let fresh = || Streams::new(dataset.clone(), options(v, g)).unwrap();
        let whole = rest(&mut fresh());
        let (at, then) = (at % (whole.len() + 1), then % (whole.len() + 1));
        let (at, then) = (at.min(then), at.max(then));
        // Stopped twice, each state through JSON into a new object.
        let mut stopped = fresh();
        (0..at).for_each(|_| drop(stopped.next_batch()));
        let through = |state: StreamState| -> StreamState {
            serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap()
        };
        let mut second = fresh();
        second.resume(&through(stopped.state())).unwrap();
        for batch in &whole[at..then] {
            prop_assert_eq!(&second.next_batch().unwrap(), batch);
        }
        let mut third = fresh();
        third.resume(&through(second.state())).unwrap();
        prop_assert_eq!(rest(&mut third), &whole[then..]);
        // And back, in an object that has run on.
        second.resume(&stopped.state()).unwrap();
        prop_assert_eq!(rest(&mut second), &whole[at..]);
    }

    #[test]
    fn ranks_divide_the_same_batches(lengths in lengths(), g in 1usize..9) {
        let batches = rest(&mut Streams::new(dataset(&lengths), options(5, g)).unwrap());
        for batch in &batches {
            for world in 1..=4 {
                let shares: Vec<&[Bin]> = (0..world).map(|rank| for_rank(batch, rank, world).unwrap()).collect();
                prop_assert_eq!(&shares.concat(), batch);
                let sizes = shares.iter().map(|share| share.len());
                prop_assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
            }
        }
    }

    #[test]
    fn micro_batches_of_all_ranks_are_the_batch(lengths in lengths(), g in 1usize..9, world in 1usize..4, count in 1usize..5) {
        let mut streams = Streams::new(dataset(&lengths), options(5, g)).unwrap();
        while let Some(bins) = streams.next_batch() {
            let whole = Batch::collate(&bins);
            let mut ids = Vec::new();
            let mut weight = 0.0;
            for rank in 0..world {
                let micro = micro_batches(for_rank(&bins, rank, world).unwrap(), count).unwrap();
                prop_assert_eq!(micro.len(), count);
                for batch in micro {
                    prop_assert_eq!(batch.cu_seqlens.last().copied(), Some(batch.tokens() as i32));
                    weight += batch.weight();
                    ids.extend(batch.ids);
                }
            }
            prop_assert_eq!(ids, whole.ids.clone());
            prop_assert_eq!(weight, whole.weight());
            prop_assert_eq!(weight, bins.iter().map(Bin::weight).sum::<f64>());
        }
    }

    #[test]
    fn packing_keeps_every_item_once_and_fills_well(lengths in prop::collection::vec(1usize..=64, 0..300)) {
        let bins = pack(&lengths, 64);
        let mut seen: Vec<usize> = bins.concat();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
        let fill = |bin: &Vec<usize>| bin.iter().map(|&item| lengths[item]).sum::<usize>();
        prop_assert!(bins.iter().all(|bin| fill(bin) <= 64));
        // No neighbour of the last item could still have gone in.
        for pair in bins.windows(2) {
            prop_assert!(fill(&pair[0]) + lengths[pair[1][0]] > 64);
        }
    }

    #[test]
    fn a_flat_batch_is_its_segments(lengths in prop::collection::vec(1usize..=20, 0..30), per_bin in 1usize..5) {
        let example = |(number, &length): (usize, &usize)| Example::new(
            (0..length).map(|at| (number * 1000 + at) as u32).collect(),
            (0..length).map(|at| (at % 3) as f32 / 2.0).collect(),
        );
        let examples: Vec<Example> = lengths.iter().enumerate().map(example).collect();
        let bins: Vec<Bin> = examples
            .chunks(per_bin)
            .map(|chunk| chunk.iter().fold(Bin::default(), |mut bin, example| { bin.push(example); bin }))
            .chain([Bin::default()])
            .collect();
        let batch = Batch::collate(&bins);
        prop_assert_eq!(batch.cu_seqlens.len(), lengths.len() + 1);
        prop_assert_eq!(batch.max_seqlen, lengths.iter().copied().max().unwrap_or(0));
        prop_assert_eq!(batch.tokens(), lengths.iter().sum::<usize>());
        for (segment, example) in batch.cu_seqlens.windows(2).zip(&examples) {
            let (start, end) = (segment[0] as usize, segment[1] as usize);
            prop_assert_eq!(end - start, example.ids.len());
            for at in 0..example.ids.len() {
                prop_assert_eq!(batch.ids[start + at], i64::from(example.ids[at]));
                prop_assert_eq!(batch.positions[start + at], at as i64);
                let next = example.ids.get(at + 1).map_or(IGNORE, |&id| i64::from(id));
                prop_assert_eq!(batch.labels[start + at], next);
                prop_assert_eq!(batch.weights[start + at], example.weights.get(at + 1).copied().unwrap_or(0.0));
            }
        }
        prop_assert_eq!(batch.weight(), examples.iter().map(Example::weight).sum::<f64>());
    }
}

#[test]
fn a_segments_first_token_never_counts() {
    let mut bin = Bin::default();
    let careless = Example {
        ids: vec![1, 2],
        weights: vec![5.0, 1.0],
    };
    bin.push(&careless);
    bin.push(&careless);
    assert_eq!(bin.weights, [0.0, 1.0, 0.0, 1.0]);
    let batch = Batch::collate(&[bin]);
    assert_eq!(batch.labels, [2, IGNORE, 2, IGNORE]);
    assert_eq!(batch.weights, [1.0, 0.0, 1.0, 0.0]);
}

/// Written out by hand from the description of `Streams`.
#[test]
fn bins_are_taken_from_the_streams_in_turn() {
    let plain = StreamOptions {
        shuffle: false,
        max_length: 10,
        epochs: Some(1),
        ..options(3, 2)
    };
    // Streams: 0 has rows 0, 3, 6; 1 has 1, 4; 2 has 2, 5. Row 3 is packed with row 0, row 6 has to wait.
    let mut streams = Streams::new(dataset(&[6, 9, 8, 4, 9, 8, 7]), plain).unwrap();
    let data = streams.dataset().clone();
    let order: Vec<Vec<Vec<usize>>> = rest(&mut streams)
        .iter()
        .map(|batch| batch.iter().map(|bin| numbers(bin, &data)).collect())
        .collect();
    assert_eq!(
        order,
        [
            [vec![0, 3], vec![1]],
            [vec![2], vec![6]],
            [vec![4], vec![5]]
        ]
    );
}

#[test]
fn the_longest_that_fits_goes_in_and_the_earlier_of_two_alike() {
    assert_eq!(
        pack(&[5, 2, 3, 1, 3, 8], 8),
        [vec![0, 2], vec![1, 4, 3], vec![5]]
    );
    // Longer than a bin: alone, and nobody is lost.
    assert_eq!(pack(&[9, 1, 7], 8), [vec![0], vec![1, 2]]);
    assert!(pack(&[], 8).is_empty());
    // What lies beyond the window waits, however well it would fit.
    let mut lengths = [6; 40];
    (lengths[33], lengths[34]) = (2, 2);
    assert_eq!(pack(&lengths, 8)[..3], [vec![0], vec![1, 33], vec![2, 34]]);
}

/// Numbers of an implementation in another language, made from the descriptions of `shuffle` and `Streams`: a run has to
/// resume under a later release with the samples that it would have seen.
#[test]
fn the_order_is_the_documented_one() {
    let alone = StreamOptions {
        pack: false,
        epochs: Some(2),
        ..options(2, 4)
    };
    let mut streams = Streams::new(dataset(&[10; 12]), alone).unwrap();
    let data = streams.dataset().clone();
    let rows: Vec<usize> = rest(&mut streams)
        .concat()
        .iter()
        .flat_map(|bin| numbers(bin, &data))
        .collect();
    let (first, second) = rows.split_at(12);
    assert_eq!(first, [6, 11, 4, 1, 8, 3, 0, 9, 10, 5, 2, 7]);
    assert_eq!(second, [6, 9, 8, 3, 0, 1, 2, 5, 4, 11, 10, 7]);
    // Each stream has an order of its own.
    let places = |stream: usize| -> Vec<usize> {
        let own = first.iter().filter(|row| *row % 2 == stream);
        own.map(|row| row / 2).collect()
    };
    assert_ne!(places(0), places(1));
}

#[test]
fn an_epoch_ends_with_examples_like_those_it_began_with() {
    let lengths: Vec<usize> = (0..600).map(|i| 3 + i * 7 % 40).collect();
    let once = StreamOptions {
        epochs: Some(1),
        ..options(4, 1)
    };
    let batches = rest(&mut Streams::new(dataset(&lengths), once).unwrap());
    let mean = |batches: &[Vec<Bin>]| {
        let bins = batches.iter().flatten();
        let (mut tokens, mut segments) = (0, 0);
        for bin in bins {
            tokens += bin.len();
            segments += bin.lengths.len();
        }
        tokens as f64 / segments as f64
    };
    let all = mean(&batches);
    for part in batches.chunks(batches.len() / 4).take(4) {
        assert!(
            (mean(part) / all - 1.0).abs() < 0.15,
            "{} {all}",
            mean(part)
        );
    }
}

#[test]
fn the_seed_and_v_decide_the_order() {
    let data = dataset(&[10; 100]);
    let run = |seed, v| {
        rest(
            &mut Streams::new(
                data.clone(),
                StreamOptions {
                    seed,
                    ..options(v, 4)
                },
            )
            .unwrap(),
        )
    };
    assert_eq!(run(1, 5), run(1, 5));
    assert_ne!(run(1, 5), run(2, 5));
    assert_ne!(run(1, 5), run(1, 6));
}

#[test]
fn a_state_of_another_stream_is_refused_with_both_values() {
    let data = dataset(&[10; 30]);
    let state = Streams::new(data.clone(), options(4, 2)).unwrap().state();
    let refused = |data: &Arc<Dataset>, options: StreamOptions, state: &StreamState| {
        Streams::new(data.clone(), options)
            .unwrap()
            .resume(state)
            .unwrap_err()
            .to_string()
    };
    let base = options(4, 2);
    let cases = [
        (
            StreamOptions {
                seed: 8,
                ..base.clone()
            },
            "seed was 7 when the state was saved and is 8 now",
        ),
        (
            StreamOptions {
                virtual_streams: 5,
                ..base.clone()
            },
            "virtual_streams was 4",
        ),
        (
            StreamOptions {
                max_length: 65,
                ..base.clone()
            },
            "max_length was 64 when the state was saved and is 65 now",
        ),
        (
            StreamOptions {
                global_batch: 3,
                ..base.clone()
            },
            "global_batch was 2",
        ),
        (
            StreamOptions {
                shuffle: false,
                ..base.clone()
            },
            "shuffle was true",
        ),
        (
            StreamOptions {
                pack: false,
                ..base.clone()
            },
            "pack was true",
        ),
    ];
    for (options, reason) in cases {
        let error = refused(&data, options, &state);
        assert!(error.contains(reason), "{error}");
    }
    let other = dataset(&[11; 30]);
    let error = refused(&other, base.clone(), &state);
    assert!(
        error.contains(data.fingerprint()) && error.contains(other.fingerprint()),
        "{error}"
    );
    let error = refused(
        &data,
        base.clone(),
        &StreamState {
            batch: 99,
            ..state.clone()
        },
    );
    assert!(error.contains("batch 99 of epoch 0"), "{error}");
    // More epochs than were planned are no other stream.
    Streams::new(
        data,
        StreamOptions {
            epochs: None,
            ..base
        },
    )
    .unwrap()
    .resume(&state)
    .unwrap();
}

#[test]
fn options_that_make_no_sense_are_named() {
    let data = dataset(&[10; 3]);
    let fails =
        |options: StreamOptions| Streams::new(data.clone(), options).unwrap_err().to_string();
    assert_eq!(
        fails(options(0, 2)),
        "virtual_streams = 0: must be at least 1"
    );
    assert_eq!(fails(options(4, 0)), "global_batch = 0: must be at least 1");
    let short = StreamOptions {
        max_length: 9,
        ..options(1, 1)
    };
    assert_eq!(fails(short), "example 0: 10 tokens do not fit max_length 9");
    assert!(matches!(
        for_rank(&[], 2, 2),
        Err(Error::Option {
            option: "rank",
            value: 2,
            ..
        })
    ));
    assert!(for_rank(&[], 0, 0).is_err());
    assert!(micro_batches(&[], 0).is_err());
}
