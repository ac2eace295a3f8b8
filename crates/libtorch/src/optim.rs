//! libtorch's fused optimizer steps.

use crate::{Error, Result, ffi};
use libc::c_int;
use tch::Tensor;

/// The constants of one AdamW step (Loshchilov and Hutter, 2019, algorithm 2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the two averages.
    pub betas: (f64, f64),
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// One tensor's part in a fused AdamW step. All four big tensors share shape and dtype.
#[derive(Debug)]
pub struct AdamWSlot {
    /// Changed in place.
    pub parameter: Tensor,
    /// Read.
    pub gradient: Tensor,
    /// First moment, changed in place.
    pub exp_avg: Tensor,
    /// Second moment, changed in place.
    pub exp_avg_sq: Tensor,
    /// `f32 []`, the number of steps so far; incremented.
    pub step: Tensor,
}

/// Steps every slot in one pass over its memory (`torch._fused_adamw_`), step counts included.
///
/// # Errors
/// Mixed dtypes or shapes: a bf16 parameter with an fp32 state needs a master copy.
pub fn fused_adamw(slots: &[AdamWSlot], options: AdamWStep) -> Result<()> {
    if slots.is_empty() {
        return Ok(());
    }
    for slot in slots {
        let shape = slot.parameter.size();
        for other in [&slot.gradient, &slot.exp_avg, &slot.exp_avg_sq] {
            if other.size() != shape || other.kind() != slot.parameter.kind() {
                let tensors = [&slot.parameter, other];
                return Err(Error::operation(
                    "fused_adamw",
                    &tensors,
                    "shape or dtype differs",
                ));
            }
        }
    }
    for slot in slots {
        let mut step = slot.step.shallow_clone();
        let _ = step.f_add_scalar_(1)?;
    }
    let handles =
        |part: fn(&AdamWSlot) -> &Tensor| ffi::handles(&slots.iter().map(part).collect::<Vec<_>>());
    let parameters = handles(|slot| &slot.parameter);
    let gradients = handles(|slot| &slot.gradient);
    let averages = handles(|slot| &slot.exp_avg);
    let squares = handles(|slot| &slot.exp_avg_sq);
    let steps = handles(|slot| &slot.step);
    let (beta1, beta2) = options.betas;
    // SAFETY: five arrays of `slots.len()` live handles; libtorch checks devices, and shapes and
    // dtypes were checked above.
    unsafe {
        let message = ffi::ft_fused_adamw(
            parameters.as_ptr(),
            gradients.as_ptr(),
            averages.as_ptr(),
            squares.as_ptr(),
            steps.as_ptr(),
            slots.len() as c_int,
            options.lr,
            beta1,
            beta2,
            options.weight_decay,
            options.eps,
        );
        ffi::check("fused_adamw", &[], message)
    }
}
