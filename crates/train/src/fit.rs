//! The loop from the first step to the last: evaluate, observe, save, stop on demand.

use crate::{Error, Evaluation, Loader, Loss, Observer, Optimizer, Result, Run, checkpoint};
use ferrotune_nn::{Ctx, Module};
use std::path::PathBuf;

/// How a run is carried through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit {
    /// Where the checkpoints go.
    pub checkpoints: PathBuf,
    /// Ends before the loader does.
    pub max_steps: Option<u64>,
    /// Steps between checkpoints; without it there is one at the end.
    pub save_every: Option<u64>,
    /// Steps between evaluations; without it there is one at the end.
    pub eval_every: Option<u64>,
    /// The newest checkpoints that are kept.
    pub keep: usize,
}

impl Fit {
    /// One checkpoint and one evaluation, at the end.
    pub fn new(checkpoints: impl Into<PathBuf>) -> Self {
        Self {
            checkpoints: checkpoints.into(),
            max_steps: None,
            save_every: None,
            eval_every: None,
            keep: 2,
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// Its last checkpoint.
    pub checkpoint: PathBuf,
    /// Whether an end was asked for before the last step.
    pub interrupted: bool,
    /// The last evaluation.
    pub evaluation: Option<Evaluation>,
}

/// Judges the model of a run.
pub type Judge<'a, R> = &'a mut dyn FnMut(&R) -> Result<Evaluation>;

impl<M: Module, O: Optimizer, L: Loader> Run<M, O, L> {
    /// Steps until the loader ends, `max_steps` are done or `stop` says so; then saves.
    ///
    /// `evaluate` judges the model where there is something to judge it by. A run that begins anew
    /// where checkpoints stand is refused: resume from them, or take another folder.
    ///
    /// # Errors
    /// As [`Run::step`] and [`Run::save`], or what an observer returns. Checkpoints that stand stay.
    pub fn fit(
        &mut self,
        fit: &Fit,
        mut loss: impl FnMut(&M, &L::Batch, &Ctx) -> Result<Loss>,
        mut evaluate: Option<Judge<Self>>,
        observers: &mut [&mut dyn Observer],
        stop: impl Fn() -> bool,
    ) -> Result<Ended> {
        if self.steps_done() == 0
            && let (Some(path), _) = checkpoint::latest(&fit.checkpoints)?
        {
            let reason = "a run begins here anew, but this stands already: resume from it, or take \
                          another folder";
            return Err(Error::Checkpoint {
                path,
                reason: reason.to_owned(),
            });
        }
        let total = [fit.max_steps, self.loader().steps()];
        let total = total.into_iter().flatten().min();
        for observer in observers.iter_mut() {
            observer.begin(self.steps_done(), total)?;
        }
        let every = |step: u64, period: Option<u64>| period.is_some_and(|n| step.is_multiple_of(n));
        let mut ended = Ended {
            checkpoint: PathBuf::new(),
            interrupted: false,
            evaluation: None,
        };
        let (mut evaluated_at, mut saved_at) = (None, None);
        loop {
            ended.interrupted = stop();
            let over = fit.max_steps.is_some_and(|max| self.steps_done() >= max);
            if ended.interrupted || over {
                break;
            }
            let Some(done) = self.step(&mut loss)? else {
                break;
            };
            for observer in observers.iter_mut() {
                observer.step(&done)?;
            }
            if every(done.step, fit.eval_every)
                && let Some(evaluate) = &mut evaluate
            {
                ended.evaluation = Some(self.judge(&mut **evaluate, observers)?);
                evaluated_at = Some(done.step);
            }
            if every(done.step, fit.save_every) {
                ended.checkpoint = self.save_and_prune(fit)?;
                saved_at = Some(done.step);
            }
        }
        // Saved first: whoever asked for an end may not wait for an evaluation.
        if saved_at != Some(self.steps_done()) {
            ended.checkpoint = self.save_and_prune(fit)?;
        }
        if !ended.interrupted
            && evaluated_at != Some(self.steps_done())
            && let Some(evaluate) = evaluate
        {
            ended.evaluation = Some(self.judge(evaluate, observers)?);
        }
        for observer in observers.iter_mut() {
            observer.end()?;
        }
        Ok(ended)
    }

    fn save_and_prune(&self, fit: &Fit) -> Result<PathBuf> {
        let path = self.save(&fit.checkpoints)?;
        checkpoint::prune(&fit.checkpoints, fit.keep)?;
        Ok(path)
    }

    fn judge(
        &self,
        evaluate: Judge<Self>,
        observers: &mut [&mut dyn Observer],
    ) -> Result<Evaluation> {
        let found = evaluate(self)?;
        for observer in observers.iter_mut() {
            observer.evaluation(self.steps_done(), &found)?;
        }
        Ok(found)
    }
}
