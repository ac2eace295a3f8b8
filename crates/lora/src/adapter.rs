//! The low-rank update itself.

use ferrotune_nn::libtorch::Context;
use ferrotune_nn::libtorch::tch::Tensor;
use ferrotune_nn::module::join;
use ferrotune_nn::{Adapter, Ctx, LinearOp, Param, Result, Shard, Split, Visitor};

/// `base + scale · B(A(dropout(x)))`. The parameters keep their own dtype (fp32 as a rule) and
/// the product runs in the input's.
#[derive(Debug)]
pub struct Lora {
    /// `[r, in]`.
    pub a: Param,
    /// `[out, r]`.
    pub b: Param,
    /// alpha / r, or alpha / √r.
    pub scale: f64,
    /// Probability of dropping an input, in training.
    pub dropout: f64,
}

impl Adapter for Lora {
    fn forward(&self, x: &Tensor, base: Tensor, _: &dyn LinearOp, ctx: &Ctx) -> Result<Tensor> {
        let (a, b) = (
            self.a.tensor().f_to_kind(x.kind())?,
            self.b.tensor().f_to_kind(x.kind())?,
        );
        let low = ctx
            .dropout(x, self.dropout)?
            .f_linear::<Tensor>(&a, None)
            .on("lora_A", &[x, &a])?;
        // Scaling the narrow side costs r values a token instead of out.
        let low = low.f_mul_scalar(self.scale)?;
        Ok(base.f_add(&low.f_linear::<Tensor>(&b, None).on("lora_B", &[&low, &b])?)?)
    }

    fn weight_delta(&self) -> Result<Tensor> {
        let product = self
            .b
            .tensor()
            .detach()
            .f_matmul(&self.a.tensor().detach())?;
        Ok(product.f_mul_scalar(self.scale)?)
    }

    fn shard(&self, shard: Shard) -> Result<Box<dyn Adapter>> {
        // Outputs split B's rows; inputs split A's columns, and the partial products add up with
        // the operator's.
        let (a, b) = match shard.split {
            Split::Out => (self.a.clone(), shard.of_param(&self.b, 0)?),
            Split::In => (shard.of_param(&self.a, 1)?, self.b.clone()),
        };
        Ok(Box::new(Lora { a, b, ..*self }))
    }

    fn visit(&self, path: &str, name: &str, visitor: &mut dyn Visitor) {
        visitor.param(&join(path, &format!("lora_A.{name}.weight")), &self.a);
        visitor.param(&join(path, &format!("lora_B.{name}.weight")), &self.b);
    }
}
