//! A prepared run: model, optimizer and loader that step together.

use crate::artifact::{Artifact, Parameters};
use crate::checkpoint::{self, Envelope};
use crate::{Error, Loader, Optimizer, Result, Schedule, Single, Strategy};
use ferrotune_nn::libtorch::autograd::backward;
use ferrotune_nn::libtorch::random::Generator;
use ferrotune_nn::libtorch::tch::{Device, Kind, Tensor, no_grad_guard};
use ferrotune_nn::module::trainable;
use ferrotune_nn::{BlockRunner, Checkpoint, Ctx, Direct, Module, Param, Weights, weights};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What the loss of a micro-batch is made of. Sums, so that micro-batches and ranks of any size add
/// up to what one large batch would give.
#[derive(Debug)]
pub struct Loss {
    /// Sum of the weighted losses, a scalar.
    pub sum: Tensor,
    /// Sum of the weights.
    pub weight: f64,
    /// Tokens (or rows) that went in, for the tokens/s.
    pub tokens: u64,
}

impl Loss {
    /// A mean over `rows` rows.
    ///
    /// # Errors
    /// libtorch's.
    pub fn mean(mean: &Tensor, rows: i64) -> Result<Self> {
        Ok(Self {
            sum: mean.f_mul_scalar(rows as f64)?,
            weight: rows as f64,
            tokens: rows.unsigned_abs(),
        })
    }
}

/// The settings of a run that decide its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// The learning rate over the steps.
    pub schedule: Schedule,
    /// Largest norm of all gradients together; larger ones are scaled down.
    pub clip: Option<f64>,
    /// Seed of the dropout masks.
    pub seed: u64,
    /// Whether blocks are recomputed in backward instead of kept.
    pub checkpointing: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            schedule: Schedule::CONSTANT,
            clip: Some(1.0),
            seed: 0,
            checkpointing: false,
        }
    }
}

/// What a step did; a row of metrics.jsonl.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Steps done, this one included.
    pub step: u64,
    /// Mean loss, by weight, over all ranks.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// Tokens of the step, over all ranks.
    pub tokens: u64,
    /// Tokens a second, over all ranks.
    pub tokens_per_s: f64,
}

/// What an evaluation found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean loss, by weight.
    pub loss: f64,
    /// Tokens that went in.
    pub tokens: u64,
}

impl Evaluation {
    /// e to the loss: among how many tokens the model wavers.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// Model, optimizer and loader in one, so that they step, save and resume together.
#[derive(Debug)]
pub struct Run<M, O, L> {
    model: M,
    optimizer: O,
    loader: L,
    options: Options,
    artifact: Box<dyn Artifact>,
    strategy: Arc<dyn Strategy>,
    params: Vec<(String, Param)>,
    rng: Generator,
    step: u64,
    tokens: u64,
}

/// Brings model, optimizer and loader together, as accelerate's `prepare` does: what trains of the
/// model is bound to the optimizer, and [`Run::step`] does the rest.
///
/// # Errors
/// A model of which nothing trains, or a parameter that the optimizer cannot take.
pub fn prepare<M: Module, O: Optimizer, L: Loader>(
    model: M,
    mut optimizer: O,
    loader: L,
) -> Result<Run<M, O, L>> {
    let params = trainable(&model);
    let (_, first) = params.first().ok_or(Error::NothingTrains)?;
    let options = Options::default();
    let rng = Generator::new(first.tensor().device(), options.seed)?;
    optimizer.bind(&params)?;
    Ok(Run {
        model,
        optimizer,
        loader,
        options,
        artifact: Box::new(Parameters),
        strategy: Arc::new(Single),
        params,
        rng,
        step: 0,
        tokens: 0,
    })
}

impl<M: Module, O: Optimizer, L: Loader> Run<M, O, L> {
    /// Sets the options, before the first step.
    ///
    /// # Errors
    /// libtorch's.
    pub fn with(mut self, options: Options) -> Result<Self> {
        self.options = options;
        self.rng
            .seed(options.seed.wrapping_add(self.strategy.rank() as u64))?;
        Ok(self)
    }

    /// Sets what checkpoints keep of the model; by default its trainable parameters.
    pub fn saving(mut self, artifact: impl Artifact + 'static) -> Self {
        self.artifact = Box::new(artifact);
        self
    }

    /// Sets how ranks work together, before the first step; by default there is one.
    ///
    /// # Errors
    /// libtorch's.
    pub fn across(mut self, strategy: Arc<dyn Strategy>) -> Result<Self> {
        self.strategy = strategy;
        let options = self.options;
        self.with(options)
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The model, when the run is over.
    pub fn into_model(self) -> M {
        self.model
    }

    /// The loader.
    pub fn loader(&self) -> &L {
        &self.loader
    }

    /// The optimizer.
    pub fn optimizer(&self) -> &O {
        &self.optimizer
    }

    /// The options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// Tokens seen by all ranks.
    pub fn tokens_seen(&self) -> u64 {
        self.tokens
    }

    /// One step: `loss` and backward for each micro-batch, then clipping and the optimizer.
    /// `None` when the loader is at its end.
    ///
    /// # Errors
    /// A loss or gradient that is not finite, a step in which nothing counts (both leave every
    /// parameter as it was), or what `loss` returns.
    pub fn step(
        &mut self,
        mut loss: impl FnMut(&M, &L::Batch, &Ctx) -> Result<Loss>,
    ) -> Result<Option<Step>> {
        let start = Instant::now();
        let Some(batches) = self.loader.next_step()? else {
            return Ok(None);
        };
        let done = self.learn(&batches, &mut loss);
        // Whatever happened, the next step begins without gradients.
        for (_, param) in &self.params {
            param.set_grad(None)?;
        }
        let mut done = done?;
        done.tokens_per_s = done.tokens as f64 / start.elapsed().as_secs_f64();
        Ok(Some(done))
    }

    fn learn(
        &mut self,
        batches: &[L::Batch],
        loss: &mut impl FnMut(&M, &L::Batch, &Ctx) -> Result<Loss>,
    ) -> Result<Step> {
        let step = self.step + 1;
        let runner: Arc<dyn BlockRunner> = match self.options.checkpointing {
            true => Arc::new(Checkpoint(Direct)),
            false => Arc::new(Direct),
        };
        let ctx = Ctx {
            runner,
            ..Ctx::train(self.rng.clone())
        };
        let (mut sums, mut weight, mut tokens) = (Vec::new(), 0.0, 0);
        for batch in batches {
            let part = loss(&self.model, batch, &ctx)?;
            weight += part.weight;
            tokens += part.tokens;
            sums.push(part.sum.detach().f_to_kind(Kind::Double)?);
            if part.sum.requires_grad() {
                backward(&[&part.sum], &[None], false)?;
            }
        }
        // One wait for the device, at the end.
        let mut totals = [total(&sums)?, weight, tokens as f64];
        self.strategy.sum(&mut totals)?;
        let [sum, weight, tokens] = totals;
        if weight <= 0.0 {
            return Err(Error::NoTarget { step });
        }
        let mean = sum / weight;
        if !mean.is_finite() {
            return Err(Error::Loss { step, loss: mean });
        }
        self.strategy.reduce(&self.params)?;
        let grad_norm = self.scale_gradients(step, weight)?;
        let lr = self.optimizer.lr() * self.options.schedule.factor(self.step);
        self.optimizer.step(lr)?;
        self.step = step;
        self.tokens += tokens as u64;
        Ok(Step {
            step,
            loss: mean,
            lr,
            grad_norm,
            tokens: tokens as u64,
            tokens_per_s: 0.0,
        })
    }

    /// Turns sums into means, clips, and returns the norm before clipping.
    fn scale_gradients(&self, step: u64, weight: f64) -> Result<f64> {
        let _guard = no_grad_guard();
        let gradients: Vec<Tensor> = self.params.iter().filter_map(|(_, p)| p.grad()).collect();
        let squares = gradients
            .iter()
            .map(|gradient| {
                let norm = gradient.f_to_kind(Kind::Float)?.f_norm()?;
                Ok(norm.f_to_kind(Kind::Double)?.f_square()?)
            })
            .collect::<Result<Vec<_>>>()?;
        let norm = total(&squares)?.sqrt() / weight;
        if !norm.is_finite() {
            return Err(Error::Gradient { step, norm });
        }
        // PyTorch's clip_grad_norm_, the epsilon included.
        let kept = self
            .options
            .clip
            .map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0));
        for mut gradient in gradients {
            let _ = gradient.f_mul_scalar_(kept / weight)?;
        }
        Ok(norm)
    }

    /// The mean loss over `batches`, without dropout and gradients.
    ///
    /// # Errors
    /// Batches in which nothing counts, or what `loss` returns.
    pub fn evaluate<B>(
        &self,
        batches: impl IntoIterator<Item = B>,
        mut loss: impl FnMut(&M, &B, &Ctx) -> Result<Loss>,
    ) -> Result<Evaluation> {
        let _guard = no_grad_guard();
        let ctx = Ctx::eval();
        let mut totals = [0.0; 3];
        for batch in batches {
            let part = loss(&self.model, &batch, &ctx)?;
            totals[0] += f64::try_from(&part.sum)?;
            totals[1] += part.weight;
            totals[2] += part.tokens as f64;
        }
        self.strategy.sum(&mut totals)?;
        let [sum, weight, tokens] = totals;
        if weight <= 0.0 {
            return Err(Error::NoTarget { step: self.step });
        }
        Ok(Evaluation {
            loss: sum / weight,
            tokens: tokens as u64,
        })
    }

    /// Writes a checkpoint below `dir` and returns its folder; see [`checkpoint`].
    ///
    /// # Errors
    /// The system's, a full disk say; earlier checkpoints stay as they are.
    pub fn save(&self, dir: &Path) -> Result<PathBuf> {
        let envelope = Envelope {
            format: checkpoint::FORMAT,
            step: self.step,
            tokens: self.tokens,
            world_size: self.strategy.world_size(),
            options: serde_json::to_value(self.options)
                .map_err(|error| Error::Config(error.to_string()))?,
            data: self.loader.state()?,
            files: Default::default(),
        };
        checkpoint::write(dir, envelope, |dir| {
            self.artifact.save(&self.model, dir)?;
            let state = self.optimizer.state();
            let tensors = state.iter().map(|(name, tensor)| (name.as_str(), tensor));
            weights::save_file(&dir.join(checkpoint::OPTIMIZER_FILE), tensors)?;
            let states = [
                ("run", self.rng.state()?),
                ("cpu", Generator::default_of(Device::Cpu)?.state()?),
            ];
            let tensors = states.iter().map(|(name, tensor)| (*name, tensor));
            let file = checkpoint::rng_file(self.strategy.rank());
            Ok(weights::save_file(&dir.join(file), tensors)?)
        })
    }

    /// Goes on from a checkpoint's folder: the next losses are those of the run that wrote it, bit
    /// for bit on a CPU. At another number of ranks the samples are the same and the dropout masks
    /// are not.
    ///
    /// # Errors
    /// A checkpoint that is damaged, of another format, or of another model, optimizer or dataset.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        let envelope = checkpoint::read(path)?;
        self.loader.resume(&envelope.data)?;
        self.artifact.load(&self.model, path)?;
        let state = Weights::open(path.join(checkpoint::OPTIMIZER_FILE))?;
        self.optimizer.load_state(&state)?;
        if envelope.world_size == self.strategy.world_size() {
            let file = checkpoint::rng_file(self.strategy.rank());
            let states = Weights::open(path.join(file))?;
            let state = |name| states.load(name, None, None, Device::Cpu);
            self.rng.set_state(&state("run")?)?;
            Generator::default_of(Device::Cpu)?.set_state(&state("cpu")?)?;
        }
        self.step = envelope.step;
        self.tokens = envelope.tokens;
        Ok(())
    }
}

/// The sum of scalars, 0 of none.
fn total(scalars: &[Tensor]) -> Result<f64> {
    if scalars.is_empty() {
        return Ok(0.0);
    }
    Ok(f64::try_from(Tensor::f_stack(scalars, 0)?.f_sum(None)?)?)
}
