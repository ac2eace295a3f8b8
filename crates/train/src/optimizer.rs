//! Optimizers over the trainable parameters of a module, with a state that can be saved.

use crate::{Error, Result};
use ferrotune_nn::libtorch::optim::{AdamWSlot, AdamWStep, fused_adamw};
use ferrotune_nn::libtorch::tch::{Kind, Tensor, no_grad_guard};
use ferrotune_nn::{Param, Weights};
use std::collections::HashMap;

/// Changes parameters by their gradients.
pub trait Optimizer: Send {
    /// Takes up the parameters that it will change, each under its path.
    ///
    /// # Errors
    /// A parameter that it cannot train.
    fn bind(&mut self, params: &[(String, Param)]) -> Result<()>;
    /// The learning rate before any schedule.
    fn lr(&self) -> f64;
    /// One step at the learning rate `lr`. A parameter without a gradient stays.
    ///
    /// # Errors
    /// libtorch's.
    fn step(&mut self, lr: f64) -> Result<()>;
    /// Its tensors by name, to be saved.
    fn state(&self) -> Vec<(String, Tensor)>;
    /// Takes up tensors that [`Optimizer::state`] gave, all and no others.
    ///
    /// # Errors
    /// A tensor that is missing, unknown or of another shape.
    fn load_state(&mut self, state: &Weights) -> Result<()>;
}

/// AdamW (Loshchilov and Hutter, 2019), libtorch's fused step. Its state is fp32 whatever the
/// parameter is; a parameter of another dtype has an fp32 master copy that the step changes.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWStep,
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    path: String,
    param: Param,
    /// The parameter itself if it is fp32.
    master: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
}

impl AdamW {
    /// PyTorch's defaults but for the weight decay, which is 0: betas 0.9 and 0.999, eps 1e-8.
    pub fn new(lr: f64) -> Self {
        Self::with(AdamWStep {
            lr,
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.0,
        })
    }

    /// All constants chosen. Vectors (norms and biases) are not decayed, as in transformers.
    pub fn with(options: AdamWStep) -> Self {
        Self {
            options,
            slots: Vec::new(),
        }
    }
}

impl Slot {
    fn new(path: &str, param: &Param) -> Result<Self> {
        let tensor = param.tensor().detach();
        let options = (Kind::Float, tensor.device());
        Ok(Self {
            path: path.to_owned(),
            param: param.clone(),
            master: tensor.f_to_kind(Kind::Float)?,
            exp_avg: Tensor::f_zeros(tensor.size(), options)?,
            exp_avg_sq: Tensor::f_zeros(tensor.size(), options)?,
            step: Tensor::f_zeros([] as [i64; 0], options)?,
        })
    }

    fn has_master(&self) -> bool {
        self.param.tensor().kind() != Kind::Float
    }

    /// What is saved, as (name, tensor).
    fn tensors(&self) -> Vec<(String, &Tensor)> {
        let mut tensors = vec![
            ("exp_avg", &self.exp_avg),
            ("exp_avg_sq", &self.exp_avg_sq),
            ("step", &self.step),
        ];
        if self.has_master() {
            tensors.push(("master", &self.master));
        }
        let named = |(name, tensor)| (format!("{}.{name}", self.path), tensor);
        tensors.into_iter().map(named).collect()
    }
}

impl Optimizer for AdamW {
    fn bind(&mut self, params: &[(String, Param)]) -> Result<()> {
        let slots = params.iter().map(|(path, param)| Slot::new(path, param));
        self.slots = slots.collect::<Result<_>>()?;
        Ok(())
    }

    fn lr(&self) -> f64 {
        self.options.lr
    }

    fn step(&mut self, lr: f64) -> Result<()> {
        let _guard = no_grad_guard();
        let mut stepped = Vec::new();
        // Matrices, then vectors: what decays and what does not.
        let mut groups: [Vec<AdamWSlot>; 2] = Default::default();
        for slot in &self.slots {
            let Some(gradient) = slot.param.grad() else {
                continue;
            };
            groups[usize::from(slot.master.dim() < 2)].push(AdamWSlot {
                parameter: slot.master.shallow_clone(),
                gradient: gradient.f_to_kind(Kind::Float)?,
                exp_avg: slot.exp_avg.shallow_clone(),
                exp_avg_sq: slot.exp_avg_sq.shallow_clone(),
                step: slot.step.shallow_clone(),
            });
            stepped.push(slot);
        }
        let decays = [self.options.weight_decay, 0.0];
        for (group, weight_decay) in groups.iter().zip(decays) {
            let options = AdamWStep {
                lr,
                weight_decay,
                ..self.options
            };
            fused_adamw(group, options)?;
        }
        for slot in stepped.into_iter().filter(|slot| slot.has_master()) {
            slot.param.assign(&slot.master)?;
        }
        Ok(())
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        let tensors = self.slots.iter().flat_map(Slot::tensors);
        tensors
            .map(|(name, tensor)| (name, tensor.shallow_clone()))
            .collect()
    }

    fn load_state(&mut self, state: &Weights) -> Result<()> {
        let _guard = no_grad_guard();
        let mut read = HashMap::new();
        for (name, tensor) in self.slots.iter().flat_map(Slot::tensors) {
            let found = state.load(&name, Some(&tensor.size()), None, tensor.device())?;
            if found.kind() != Kind::Float {
                return Err(Error::Config(format!(
                    "optimizer state `{name}` is {:?}, not fp32",
                    found.kind()
                )));
            }
            read.insert(name, found);
        }
        state.finish(|_| false)?;
        // Nothing is taken over before all of it is there.
        for (name, tensor) in self.slots.iter().flat_map(Slot::tensors) {
            tensor.shallow_clone().f_copy_(&read[&name])?;
        }
        Ok(())
    }
}
