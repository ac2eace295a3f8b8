//! The linear layer and its slots: operator, adapters, placement, bias.
//!
//! LoRA fills the adapter slot, quantization swaps the operator, tensor parallelism sets the
//! placement; none of them needs another model file, and one order of forward serves all.

use crate::ctx::Adapters;
use crate::module::join;
use crate::{Ctx, Error, Module, Param, Result, Visitor, VisitorMut};
use ferrotune_libtorch::Context;
use ferrotune_libtorch::tch::{Device, Tensor};
use std::fmt::Debug;

/// Which part of a weight a rank holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// The dimension that is split.
    pub split: Split,
    /// This part.
    pub rank: i64,
    /// The number of parts.
    pub world: i64,
}

/// The dimension of `[out_features, in_features]` along which a weight is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Each rank computes some of the outputs.
    Out,
    /// Each rank has some of the inputs; outputs are partial sums.
    In,
}

impl Shard {
    /// This rank's part of `tensor` along `dim`.
    ///
    /// # Errors
    /// A rank outside the world, a dimension that is not there, or a size that `world` does not
    /// divide.
    pub fn of(&self, tensor: &Tensor, dim: i64) -> Result<Tensor> {
        let shape = tensor.size();
        let size = usize::try_from(dim).ok().and_then(|dim| shape.get(dim));
        let fits = (0..self.world).contains(&self.rank);
        let Some(size) = size.filter(|size| fits && **size % self.world == 0) else {
            let Self { rank, world, .. } = self;
            return Err(Error::Invalid(format!(
                "{shape:?} has no part {rank} of {world} along dimension {dim}"
            )));
        };
        let part = size / self.world;
        let part = tensor.f_narrow(dim, self.rank * part, part)?;
        // A copy: a view would keep the whole alive.
        let mut own = Tensor::f_empty(part.size(), (part.kind(), part.device()))?;
        own.f_copy_(&part)?;
        Ok(own)
    }

    /// [`Shard::of`] a parameter; the part trains if the whole did.
    ///
    /// # Errors
    /// As [`Shard::of`].
    pub fn of_param(&self, param: &Param, dim: i64) -> Result<Param> {
        let part = Param::new(self.of(&param.tensor().detach(), dim)?);
        part.set_trainable(param.trainable())?;
        Ok(part)
    }
}

/// How a linear multiplies: dense, or by a low-bit kernel.
pub trait LinearOp: Debug + Send + Sync {
    /// `[out_features, in_features]`.
    fn shape(&self) -> (i64, i64);
    /// Where the weight lies.
    fn device(&self) -> Device;
    /// `x [.., in]` times the weight transposed: `[.., out]`, differentiable in `x`.
    ///
    /// # Errors
    /// Operands that do not fit.
    fn apply(&self, x: &Tensor) -> Result<Tensor>;
    /// [`LinearOp::apply`] and `bias [out]`: a kernel that adds it before it rounds is better.
    ///
    /// # Errors
    /// Operands that do not fit.
    fn apply_with_bias(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        add_bias(&self.apply(x)?, bias)
    }
    /// `y [.., out]` times the weight: `[.., in]`.
    ///
    /// # Errors
    /// Operands that do not fit.
    fn apply_transposed(&self, y: &Tensor) -> Result<Tensor>;
    /// The weight `[out, in]`, dequantized if need be.
    ///
    /// # Errors
    /// libtorch's.
    fn dense(&self) -> Result<Tensor>;
    /// Takes up a new weight, quantizing it if need be.
    ///
    /// # Errors
    /// A weight of another shape.
    fn set_dense(&mut self, weight: &Tensor) -> Result<()>;
    /// The operator of one rank.
    ///
    /// # Errors
    /// A shape that does not split.
    fn shard(&self, shard: Shard) -> Result<Box<dyn LinearOp>>;
    /// Shows the operator's own parameters.
    fn visit(&self, path: &str, visitor: &mut dyn Visitor);
}

/// What is added to a linear.
pub trait Adapter: Debug + Send + Sync {
    /// Turns the operator's output `base [.., out]` for the input `x [.., in]` into the adapted one.
    /// Under a row split `base` and the result are partial sums.
    ///
    /// # Errors
    /// Operands that do not fit.
    fn forward(&self, x: &Tensor, base: Tensor, op: &dyn LinearOp, ctx: &Ctx) -> Result<Tensor>;
    /// What merging adds to the weight, `[out, in]`.
    ///
    /// # Errors
    /// libtorch's.
    fn weight_delta(&self) -> Result<Tensor>;
    /// The adapter of one rank.
    ///
    /// # Errors
    /// A shape that does not split.
    fn shard(&self, shard: Shard) -> Result<Box<dyn Adapter>>;
    /// Shows the adapter's parameters; `name` is the adapter's own, `path` the linear's.
    fn visit(&self, path: &str, name: &str, visitor: &mut dyn Visitor);
}

/// Where a linear's parts lie: the collectives before and after its product.
pub trait Placement: Debug + Send + Sync {
    /// What happens to the input.
    ///
    /// # Errors
    /// The collective's.
    fn enter(&self, x: &Tensor) -> Result<Tensor>;
    /// What happens to the adapted output, before the bias.
    ///
    /// # Errors
    /// The collective's.
    fn leave(&self, y: Tensor) -> Result<Tensor>;
}

/// A weight as it is. The product runs in the input's dtype.
#[derive(Debug)]
pub struct Dense {
    weight: Param,
}

impl Dense {
    /// `weight [out, in]`.
    pub fn new(weight: Param) -> Self {
        Self { weight }
    }
}

impl LinearOp for Dense {
    fn shape(&self) -> (i64, i64) {
        match self.weight.tensor().size()[..] {
            [out, inputs] => (out, inputs),
            // No matrix fits nothing.
            _ => (0, 0),
        }
    }
    fn device(&self) -> Device {
        self.weight.tensor().device()
    }
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let weight = self.weight.tensor().f_to_kind(x.kind())?;
        Ok(x.f_linear::<Tensor>(&weight, None)
            .on("linear", &[x, &weight])?)
    }
    fn apply_with_bias(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let kind = x.kind();
        let (weight, bias) = (self.weight.tensor().f_to_kind(kind)?, bias.f_to_kind(kind)?);
        Ok(x.f_linear(&weight, Some(&bias))
            .on("linear", &[x, &weight, &bias])?)
    }
    fn apply_transposed(&self, y: &Tensor) -> Result<Tensor> {
        let weight = self.weight.tensor().f_to_kind(y.kind())?;
        Ok(y.f_matmul(&weight).on("linear transposed", &[y, &weight])?)
    }
    fn dense(&self) -> Result<Tensor> {
        Ok(self.weight.tensor().detach())
    }
    fn set_dense(&mut self, weight: &Tensor) -> Result<()> {
        self.weight.assign(weight)
    }
    fn shard(&self, shard: Shard) -> Result<Box<dyn LinearOp>> {
        let dim = if shard.split == Split::Out { 0 } else { 1 };
        Ok(Box::new(Dense::new(shard.of_param(&self.weight, dim)?)))
    }
    fn visit(&self, path: &str, visitor: &mut dyn Visitor) {
        visitor.param(&join(path, "weight"), &self.weight);
    }
}

fn add_bias(y: &Tensor, bias: &Tensor) -> Result<Tensor> {
    Ok(y.f_add(&bias.f_to_kind(y.kind())?).on("bias", &[y, bias])?)
}

/// An adapter in its slot.
#[derive(Debug)]
pub struct Attached {
    /// Its name, `default` unless there are several.
    pub name: String,
    /// The adapter.
    pub adapter: Box<dyn Adapter>,
    /// Whether it applies when the context does not choose.
    pub active: bool,
    /// Whether the weight already contains it.
    pub merged: bool,
}

/// A linear layer: input collective, operator plus adapters, output collective, bias. Where nothing
/// stands between the operator and the bias, the operator adds it.
#[derive(Debug)]
pub struct Linear {
    op: Box<dyn LinearOp>,
    adapters: Vec<Attached>,
    placement: Option<Box<dyn Placement>>,
    bias: Option<Param>,
}

impl Linear {
    /// A linear over `op`, with a bias `[out]` or none.
    pub fn new(op: Box<dyn LinearOp>, bias: Option<Param>) -> Self {
        Self {
            op,
            adapters: Vec::new(),
            placement: None,
            bias,
        }
    }

    /// The operator.
    pub fn op(&self) -> &dyn LinearOp {
        self.op.as_ref()
    }

    /// Swaps the operator for another of the same shape.
    ///
    /// # Errors
    /// Another shape.
    pub fn set_op(&mut self, op: Box<dyn LinearOp>) -> Result<()> {
        if op.shape() != self.op.shape() {
            let (new, old) = (op.shape(), self.op.shape());
            return Err(Error::Invalid(format!(
                "an operator of shape {new:?} for {old:?}"
            )));
        }
        self.op = op;
        Ok(())
    }

    /// The adapters, in the order of their arrival.
    pub fn adapters(&self) -> &[Attached] {
        &self.adapters
    }

    /// The adapters, to activate or detach them.
    pub fn adapters_mut(&mut self) -> &mut Vec<Attached> {
        &mut self.adapters
    }

    /// The bias `[out]`.
    pub fn bias(&self) -> Option<&Param> {
        self.bias.as_ref()
    }

    /// Attaches an active adapter.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn attach(&mut self, name: &str, adapter: Box<dyn Adapter>) -> Result<()> {
        if self.adapters.iter().any(|attached| attached.name == name) {
            return Err(Error::Invalid(format!(
                "an adapter `{name}` is attached already"
            )));
        }
        self.adapters.push(Attached {
            name: name.to_owned(),
            adapter,
            active: true,
            merged: false,
        });
        Ok(())
    }

    /// Adds adapter `name` into the weight (or takes it out again); forward then skips it.
    ///
    /// # Errors
    /// A result that is not finite: the weight stays as it was.
    pub fn set_merged(&mut self, name: &str, merged: bool) -> Result<()> {
        let Some(attached) = self
            .adapters
            .iter_mut()
            .find(|attached| attached.name == name)
        else {
            return Ok(());
        };
        if attached.merged == merged {
            return Ok(());
        }
        let weight = self.op.dense()?;
        // In the adapter's dtype, as a rule the wider one, so that the sum is rounded once.
        let delta = attached.adapter.weight_delta()?;
        let result = if merged {
            weight.f_add(&delta)?
        } else {
            weight.f_sub(&delta)?
        }
        .f_to_kind(weight.kind())?;
        if !bool::try_from(result.f_isfinite()?.f_all()?)? {
            return Err(Error::Invalid(format!(
                "merging adapter `{name}` gives non-finite weights"
            )));
        }
        self.op.set_dense(&result)?;
        attached.merged = merged;
        Ok(())
    }

    /// Keeps one rank's part of operator, adapters and bias, and sets the collectives.
    ///
    /// # Errors
    /// A shape that does not split.
    pub fn place(&mut self, shard: Shard, placement: Box<dyn Placement>) -> Result<()> {
        let op = self.op.shard(shard)?;
        let parts: Vec<_> = self
            .adapters
            .iter()
            .map(|attached| attached.adapter.shard(shard))
            .collect::<Result<_>>()?;
        if let (Split::Out, Some(bias)) = (shard.split, &self.bias) {
            self.bias = Some(shard.of_param(bias, 0)?);
        }
        self.op = op;
        for (attached, part) in self.adapters.iter_mut().zip(parts) {
            attached.adapter = part;
        }
        self.placement = Some(placement);
        Ok(())
    }

    /// `x [.., in]` to `[.., out]`.
    ///
    /// # Errors
    /// Operands that do not fit, or what a slot finds wrong.
    pub fn forward(&self, x: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        let entered = self
            .placement
            .as_ref()
            .map(|placement| placement.enter(x))
            .transpose()?;
        let x = entered.as_ref().unwrap_or(x);
        let bias = self.bias.as_ref().map(Param::tensor);
        if let (Some(bias), None, false) = (bias, &self.placement, self.is_adapted(ctx)) {
            return self.op.apply_with_bias(x, bias);
        }
        let mut y = self.adapt(x, self.op.apply(x)?, ctx)?;
        if let Some(placement) = &self.placement {
            y = placement.leave(y)?;
        }
        match bias {
            Some(bias) => add_bias(&y, bias),
            None => Ok(y),
        }
    }

    /// Whether [`Linear::adapt`] does anything.
    fn is_adapted(&self, ctx: &Ctx) -> bool {
        let mut waiting = self.adapters.iter().filter(|attached| !attached.merged);
        waiting.any(|attached| match &ctx.adapters {
            Adapters::Active => attached.active,
            Adapters::Off => false,
            Adapters::Named(names) => names.contains(&attached.name),
            Adapters::PerRow(rows) => rows.iter().flatten().any(|name| *name == attached.name),
        })
    }

    fn adapt(&self, x: &Tensor, mut y: Tensor, ctx: &Ctx) -> Result<Tensor> {
        for attached in self.adapters.iter().filter(|attached| !attached.merged) {
            let on = match &ctx.adapters {
                Adapters::Active => attached.active,
                Adapters::Off => false,
                Adapters::Named(names) => names.contains(&attached.name),
                Adapters::PerRow(rows) => {
                    y = self.adapt_rows(x, y, attached, rows, ctx)?;
                    false
                }
            };
            if on {
                y = attached.adapter.forward(x, y, self.op(), ctx)?;
            }
        }
        Ok(y)
    }

    fn adapt_rows(
        &self,
        x: &Tensor,
        y: Tensor,
        attached: &Attached,
        rows: &[Option<String>],
        ctx: &Ctx,
    ) -> Result<Tensor> {
        let batch = x.size().first().copied().unwrap_or(0);
        if rows.len() as i64 != batch {
            return Err(Error::Invalid(format!(
                "{} adapter names for {batch} rows",
                rows.len()
            )));
        }
        let mine: Vec<i64> = (0..)
            .zip(rows)
            .filter(|(_, name)| name.as_ref() == Some(&attached.name))
            .map(|(row, _)| row)
            .collect();
        if mine.is_empty() {
            return Ok(y);
        }
        let mine = Tensor::f_from_slice(&mine)?.f_to_device(x.device())?;
        let part = attached.adapter.forward(
            &x.f_index_select(0, &mine)?,
            y.f_index_select(0, &mine)?,
            self.op(),
            ctx,
        )?;
        Ok(y.f_index_copy(0, &mine, &part)?)
    }
}

impl Module for Linear {
    fn visit(&self, path: &str, visitor: &mut dyn Visitor) {
        visitor.linear(path, self);
        self.op.visit(path, visitor);
        if let Some(bias) = &self.bias {
            visitor.param(&join(path, "bias"), bias);
        }
        for attached in &self.adapters {
            attached.adapter.visit(path, &attached.name, visitor);
        }
    }
    fn visit_mut(&mut self, path: &str, visitor: &mut dyn VisitorMut) -> Result<()> {
        visitor.linear(path, self)
    }
}
