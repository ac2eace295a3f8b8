//! A stranger's program: a layer of their own with a LoRA adapter, one step of gradients.

use ferrotune_lora::{LoraConfig, attach, merge, train_only};
use ferrotune_nn::libtorch::tch::{Device, Kind, Tensor};
use ferrotune_nn::{Ctx, Factory, Linear, module, module::trainable};

struct Net {
    q_proj: Linear,
    o_proj: Linear,
}
module!(Net { q_proj, o_proj });

impl Net {
    fn forward(&self, x: &Tensor) -> ferrotune_nn::Result<Tensor> {
        let ctx = Ctx::eval();
        self.o_proj.forward(&self.q_proj.forward(x, &ctx)?, &ctx)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let factory = Factory::random(1, Kind::Float, Device::Cpu)?;
    let mut net = Net {
        q_proj: factory.linear("q_proj", 8, 8, false, 0.3)?,
        o_proj: factory.linear("o_proj", 8, 8, false, 0.3)?,
    };
    let config = LoraConfig {
        r: 2,
        lora_alpha: 8.0,
        target_modules: ["q_proj"].into(),
        ..LoraConfig::default()
    };
    attach(&mut net, "default", &config, 42)?;
    train_only(&mut net, "default")?;

    let x = Tensor::f_ones([1, 8], (Kind::Float, Device::Cpu))?;
    net.forward(&x)?.f_sum(Kind::Float)?.f_backward()?;
    // B begins at zero, so that only its gradient can be other than zero.
    let (path, b) = trainable(&net).pop().ok_or("nothing to train")?;
    let gradient = b.grad().ok_or("no gradient")?;
    assert!(f64::try_from(gradient.f_abs()?.f_max()?)? > 0.0, "{path}");
    b.assign(&gradient)?;

    let adapted = net.forward(&x)?;
    merge(&mut net, "default")?;
    assert!(net.forward(&x)?.f_allclose(&adapted, 1e-5, 1e-5, false)?);
    println!("{path} learns, and merged equals unmerged");
    Ok(())
}
