use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    Batch, Bin, Dataset, Error, Result,
    pack::pack,
    shuffle::{Purpose, shuffle},
};

/// How a dataset becomes batches. All but `epochs` decide the order of samples; the number of ranks is not among them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamOptions {
    /// Virtual streams, V. Example i belongs to stream i mod V.
    pub virtual_streams: usize,
    /// Seed of the shuffles.
    pub seed: u64,
    /// Tokens a bin may have.
    pub max_length: usize,
    /// Bins of a batch over all ranks.
    pub global_batch: usize,
    /// Passes over the dataset; `None` never ends.
    pub epochs: Option<u64>,
    /// Whether each stream is shuffled, anew every epoch.
    pub shuffle: bool,
    /// Whether bins hold several examples; otherwise each has one to itself.
    pub pack: bool,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            virtual_streams: 240,
            seed: 0,
            max_length: 2048,
            global_batch: 8,
            epochs: Some(1),
            shuffle: true,
            pack: true,
        }
    }
}

/// Where a [`Streams`] stands and which one it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    /// The epoch of the next batch, from 0.
    pub epoch: u64,
    /// The next batch within it, from 0.
    pub batch: usize,
    /// The options.
    pub options: StreamOptions,
    /// [`Dataset::fingerprint`].
    pub fingerprint: String,
}

/// A dataset as an endless or finite row of batches, in an order that V and the seed decide and the ranks do not.
///
/// Example i belongs to virtual stream i mod V. Every epoch each stream is shuffled by (seed, epoch, stream) and
/// packed alone, and its bins are shuffled. Bins are then taken from the streams in turn, one each, passing over those
/// that have run out, and every `global_batch` of them are a batch, the last of an epoch filled up with empty bins. All
/// ranks see the same batches and each takes its [`share`](for_rank).
#[derive(Clone, Debug)]
pub struct Streams {
    dataset: Arc<Dataset>,
    options: StreamOptions,
    epoch: u64,
    batch: usize,
    /// The bins of `epoch`, in order, as numbers of examples.
    plan: Vec<Vec<usize>>,
}

impl Streams {
    /// Batches of a dataset, from the first epoch on.
    pub fn new(dataset: impl Into<Arc<Dataset>>, options: StreamOptions) -> Result<Self> {
        let dataset = dataset.into();
        let least = [
            ("virtual_streams", options.virtual_streams),
            ("global_batch", options.global_batch),
            ("max_length", options.max_length),
        ];
        if let Some(&(option, value)) = least.iter().find(|(_, value)| *value == 0) {
            return Err(Error::Option {
                option,
                value,
                reason: "must be at least 1",
            });
        }
        let mut lengths = dataset
            .examples()
            .iter()
            .map(|example| example.ids.len())
            .enumerate();
        if let Some((index, length)) = lengths.find(|(_, length)| *length > options.max_length) {
            let reason = format!(
                "{length} tokens do not fit max_length {}",
                options.max_length
            );
            return Err(Error::Example { index, reason });
        }
        let plan = plan(&dataset, &options, 0);
        Ok(Self {
            dataset,
            options,
            epoch: 0,
            batch: 0,
            plan,
        })
    }

    /// The next batch, all of its `global_batch` bins; `None` after the last epoch.
    pub fn next_batch(&mut self) -> Option<Vec<Bin>> {
        if self
            .options
            .epochs
            .is_some_and(|epochs| self.epoch >= epochs)
        {
            return None;
        }
        let size = self.options.global_batch;
        let fill = |numbers: &Vec<usize>| {
            let mut bin = Bin::default();
            numbers
                .iter()
                .for_each(|&number| bin.push(&self.dataset.examples()[number]));
            bin
        };
        let mut bins: Vec<Bin> = self
            .plan
            .iter()
            .skip(self.batch * size)
            .take(size)
            .map(fill)
            .collect();
        bins.resize_with(size, Bin::default);
        self.batch += 1;
        if self.batch == self.batches_in_epoch() {
            self.go_to(self.epoch + 1, 0);
        }
        Some(bins)
    }

    /// Batches of the current epoch.
    fn batches_in_epoch(&self) -> usize {
        self.plan.len().div_ceil(self.options.global_batch)
    }

    fn go_to(&mut self, epoch: u64, batch: usize) {
        if epoch != self.epoch {
            self.plan = plan(&self.dataset, &self.options, epoch);
        }
        (self.epoch, self.batch) = (epoch, batch);
    }

    /// Batches of all epochs; `None` when they never end. Packing makes epochs of different lengths, so each is laid
    /// out to be counted.
    pub fn total_batches(&self) -> Option<usize> {
        let bins = |epoch| plan(&self.dataset, &self.options, epoch).len();
        Some(
            (0..self.options.epochs?)
                .map(|epoch| bins(epoch).div_ceil(self.options.global_batch))
                .sum(),
        )
    }

    /// The dataset.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// The options.
    pub fn options(&self) -> &StreamOptions {
        &self.options
    }

    /// Where this stands, before the next batch.
    pub fn state(&self) -> StreamState {
        StreamState {
            epoch: self.epoch,
            batch: self.batch,
            options: self.options.clone(),
            fingerprint: self.dataset.fingerprint().to_owned(),
        }
    }

    /// Goes to where a state was saved, at whatever number of ranks. The state of a stream with another order is
    /// refused; another number of epochs is not.
    pub fn resume(&mut self, state: &StreamState) -> Result<()> {
        let (saved, here) = (&state.options, &self.options);
        let same: [(&'static str, String, String); 7] = [
            (
                "the dataset's fingerprint",
                state.fingerprint.clone(),
                self.dataset.fingerprint().to_owned(),
            ),
            ("seed", saved.seed.to_string(), here.seed.to_string()),
            (
                "virtual_streams",
                saved.virtual_streams.to_string(),
                here.virtual_streams.to_string(),
            ),
            (
                "max_length",
                saved.max_length.to_string(),
                here.max_length.to_string(),
            ),
            (
                "global_batch",
                saved.global_batch.to_string(),
                here.global_batch.to_string(),
            ),
            (
                "shuffle",
                saved.shuffle.to_string(),
                here.shuffle.to_string(),
            ),
            ("pack", saved.pack.to_string(), here.pack.to_string()),
        ];
        if let Some((what, saved, here)) = same.into_iter().find(|(_, saved, here)| saved != here) {
            return Err(Error::OtherStream { what, saved, here });
        }
        let batches = plan(&self.dataset, &self.options, state.epoch)
            .len()
            .div_ceil(self.options.global_batch);
        if state.batch >= batches {
            let saved = format!("batch {} of epoch {}", state.batch, state.epoch);
            return Err(Error::OtherStream {
                what: "the position",
                saved,
                here: format!("at most batch {}", batches - 1),
            });
        }
        self.go_to(state.epoch, state.batch);
        Ok(())
    }
}

/// The bins of an epoch, in the order in which batches take them.
fn plan(dataset: &Dataset, options: &StreamOptions, epoch: u64) -> Vec<Vec<usize>> {
    let streams: Vec<Vec<Vec<usize>>> = (0..options.virtual_streams.min(dataset.len()))
        .map(|stream| plan_stream(dataset, options, epoch, stream))
        .collect();
    let rounds = streams.iter().map(Vec::len).max().unwrap_or_default();
    (0..rounds)
        .flat_map(|round| {
            streams
                .iter()
                .filter_map(move |bins| bins.get(round).cloned())
        })
        .collect()
}

fn plan_stream(
    dataset: &Dataset,
    options: &StreamOptions,
    epoch: u64,
    stream: usize,
) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (stream..dataset.len())
        .step_by(options.virtual_streams)
        .collect();
    if options.shuffle {
        shuffle(
            &mut order,
            Purpose::Examples,
            options.seed,
            epoch,
            stream as u64,
        );
    }
    if !options.pack {
        return order.into_iter().map(|number| vec![number]).collect();
    }
    let lengths: Vec<usize> = order
        .iter()
        .map(|&number| dataset.examples()[number].ids.len())
        .collect();
    let mut bins = pack(&lengths, options.max_length);
    if options.shuffle {
        // Packing takes long examples first: without this an epoch would end with the short ones.
        shuffle(&mut bins, Purpose::Bins, options.seed, epoch, stream as u64);
    }
    bins.into_iter()
        .map(|bin| bin.into_iter().map(|place| order[place]).collect())
        .collect()
}

/// A rank's share of a batch: bins in a row, of as many a rank as can be.
///
/// # Errors
/// A rank that is not below `world_size`.
pub fn for_rank(batch: &[Bin], rank: usize, world_size: usize) -> Result<&[Bin]> {
    if rank >= world_size {
        return Err(Error::Option {
            option: "rank",
            value: rank,
            reason: "must be less than world_size",
        });
    }
    Ok(part(batch, rank, world_size))
}

/// A rank's share as `count` batches, to be run one after another for one step. There are always that many, so that
/// ranks run in step; one may be of no tokens. Their weights add up to the share's.
///
/// # Errors
/// A `count` of 0.
pub fn micro_batches(share: &[Bin], count: usize) -> Result<Vec<Batch>> {
    if count == 0 {
        return Err(Error::Option {
            option: "micro_batches",
            value: count,
            reason: "must be at least 1",
        });
    }
    Ok((0..count)
        .map(|index| Batch::collate(part(share, index, count)))
        .collect())
}

/// The part of that index, where `count` parts differ by one bin at most.
fn part(bins: &[Bin], index: usize, count: usize) -> &[Bin] {
    &bins[index * bins.len() / count..(index + 1) * bins.len() / count]
}
