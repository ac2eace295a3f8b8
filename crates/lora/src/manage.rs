//! Attaching, choosing, merging and detaching adapters on a whole model.

use crate::{Error, Lora, LoraConfig, Result};
use ferrotune_nn::libtorch::random::Generator;
use ferrotune_nn::libtorch::tch::{Kind, Tensor};
use ferrotune_nn::module::{linear_paths, set_trainable};
use ferrotune_nn::{Linear, Module, Param, Visitor};
use std::collections::{BTreeSet, HashMap};

/// Attaches a fresh adapter to every target: A uniform as Kaiming with a = √5, B zero, both fp32,
/// so that the model computes what it did before.
///
/// # Errors
/// A configuration that matches nothing, or a name that is taken.
pub fn attach(model: &mut dyn Module, name: &str, config: &LoraConfig, seed: u64) -> Result<()> {
    config.check_init()?;
    let mut generator: Option<Generator> = None;
    attach_with(model, name, config, |_, linear, r| {
        let (out, inputs) = linear.op().shape();
        let device = linear.op().device();
        let draw = match generator.take() {
            Some(draw) if draw.device() == device => draw,
            _ => Generator::new(device, seed)?,
        };
        let mut a = Tensor::f_empty([r, inputs], (Kind::Float, device))?;
        // kaiming_uniform(a = √5) is uniform within ± 1/√fan_in.
        let bound = 1.0 / (inputs as f64).sqrt();
        draw.uniform(&mut a, -bound, bound)?;
        generator = Some(draw);
        Ok((a, Tensor::f_zeros([out, r], (Kind::Float, device))?))
    })
}

/// Attaches an adapter whose matrices A `[r, in]` and B `[out, r]` the caller makes.
pub(crate) fn attach_with(
    model: &mut dyn Module,
    name: &str,
    config: &LoraConfig,
    mut matrices: impl FnMut(&str, &Linear, i64) -> Result<(Tensor, Tensor)>,
) -> Result<()> {
    config.check()?;
    if name.is_empty() || name.contains(['.', '/', '\\']) {
        return Err(Error::Config(format!(
            "`{name}` cannot name an adapter: keys and folders are made of it"
        )));
    }
    if names_of(model).contains(name) {
        return Err(Error::Taken(name.to_owned()));
    }
    let paths = linear_paths(model);
    let mut targets = BTreeSet::new();
    for path in &paths {
        if config.targets(path)? {
            targets.insert(path.clone());
        }
    }
    if targets.is_empty() {
        let known: BTreeSet<&str> = paths
            .iter()
            .filter_map(|path| path.rsplit('.').next())
            .collect();
        return Err(Error::NoTarget {
            targets: serde_json::to_string(&config.target_modules).unwrap_or_default(),
            known: known.into_iter().collect::<Vec<_>>().join(", "),
        });
    }
    let attached = each_linear(model, |path, linear| {
        if !targets.contains(path) {
            return Ok(());
        }
        let (r, scale) = config.rank_and_scale(path)?;
        let (a, b) = matrices(path, linear, r)?;
        let lora = Lora {
            a: Param::new(a),
            b: Param::new(b),
            scale,
            dropout: config.lora_dropout,
        };
        Ok(linear.attach(name, Box::new(lora))?)
    });
    // Half an adapter is worse than none.
    if attached.is_err() && names_of(model).contains(name) {
        detach(model, name)?;
    }
    attached
}

/// Freezes everything but adapter `name`.
///
/// # Errors
/// A model without that adapter.
pub fn train_only(model: &mut dyn Module, name: &str) -> Result<()> {
    let own = own_params(model, name);
    if own.is_empty() {
        return Err(Error::Unknown(name.to_owned()));
    }
    set_trainable(model, false)?;
    Ok(own
        .iter()
        .try_for_each(|(_, param)| param.set_trainable(true))?)
}

/// Makes exactly the named adapters apply; none for the base model. Several add up.
///
/// # Errors
/// A name that the model lacks.
pub fn set_active(model: &mut dyn Module, names: &[&str]) -> Result<()> {
    let known = names_of(model);
    if let Some(name) = names.iter().find(|name| !known.contains(**name)) {
        return Err(Error::Unknown((*name).to_owned()));
    }
    each_linear(model, |_, linear| {
        for attached in linear.adapters_mut() {
            attached.active = names.contains(&attached.name.as_str());
        }
        Ok(())
    })
}

/// Adds adapter `name` into the weights; forward then costs what the base costs.
///
/// # Errors
/// A name that the model lacks, a weight that another part of the model shares, or a result that is
/// not finite: what was merged so far is then taken out again.
pub fn merge(model: &mut dyn Module, name: &str) -> Result<()> {
    set_merged(model, name, true)
}

/// Takes adapter `name` out of the weights again.
///
/// # Errors
/// A name that the model lacks.
pub fn unmerge(model: &mut dyn Module, name: &str) -> Result<()> {
    set_merged(model, name, false)
}

fn set_merged(model: &mut dyn Module, name: &str, merged: bool) -> Result<()> {
    if !names_of(model).contains(name) {
        return Err(Error::Unknown(name.to_owned()));
    }
    check_untied(model, name)?;
    let mut done = BTreeSet::new();
    let outcome = each_linear(model, |path, linear| {
        let mut adapters = linear.adapters().iter();
        if adapters.any(|attached| attached.name == name && attached.merged != merged) {
            linear.set_merged(name, merged)?;
            done.insert(path.to_owned());
        }
        Ok(())
    });
    if outcome.is_err() {
        each_linear(model, |path, linear| {
            if done.contains(path) {
                linear.set_merged(name, !merged)?;
            }
            Ok(())
        })?;
    }
    outcome
}

/// Says that no target of adapter `name` shares its weight: merged into an output layer that is the
/// embedding, the adapter would change the embedding too.
fn check_untied(model: &dyn Module, name: &str) -> Result<()> {
    struct Places<'a> {
        adapter: &'a str,
        /// The first path of each parameter.
        first: HashMap<usize, String>,
        /// Parameters seen again, and where.
        shared: HashMap<usize, String>,
        targets: Vec<(String, usize)>,
    }
    impl Visitor for Places<'_> {
        fn param(&mut self, path: &str, param: &Param) {
            let first = self
                .first
                .entry(param.id())
                .or_insert_with(|| path.to_owned());
            if first != path {
                self.shared.insert(param.id(), first.clone());
            }
        }
        fn linear(&mut self, path: &str, linear: &Linear) {
            struct Own(Vec<usize>);
            impl Visitor for Own {
                fn param(&mut self, _: &str, param: &Param) {
                    self.0.push(param.id());
                }
            }
            if linear
                .adapters()
                .iter()
                .any(|attached| attached.name == self.adapter)
            {
                let mut own = Own(Vec::new());
                linear.op().visit(path, &mut own);
                self.targets
                    .extend(own.0.into_iter().map(|id| (path.to_owned(), id)));
            }
        }
    }
    let mut places = Places {
        adapter: name,
        first: HashMap::new(),
        shared: HashMap::new(),
        targets: Vec::new(),
    };
    model.visit("", &mut places);
    for (path, id) in places.targets {
        if let Some(other) = places.shared.remove(&id) {
            return Err(Error::Tied { path, other });
        }
    }
    Ok(())
}

/// Takes adapter `name` off the model; what was merged stays merged.
///
/// # Errors
/// A name that the model lacks.
pub fn detach(model: &mut dyn Module, name: &str) -> Result<()> {
    if !names_of(model).contains(name) {
        return Err(Error::Unknown(name.to_owned()));
    }
    each_linear(model, |_, linear| {
        linear
            .adapters_mut()
            .retain(|attached| attached.name != name);
        Ok(())
    })
}

/// The parameters of adapter `name`, as (key in PEFT's file, parameter).
pub(crate) fn own_params(model: &dyn Module, name: &str) -> Vec<(String, Param)> {
    ferrotune_nn::module::params(model)
        .into_iter()
        .filter_map(|(path, param)| {
            let infix = format!(".{name}.weight");
            let stem = path.strip_suffix(&infix)?;
            (stem.ends_with(".lora_A") || stem.ends_with(".lora_B"))
                .then(|| (format!("base_model.model.{stem}.weight"), param))
        })
        .collect()
}

fn names_of(model: &dyn Module) -> BTreeSet<String> {
    struct Names(BTreeSet<String>);
    impl Visitor for Names {
        fn linear(&mut self, _: &str, linear: &Linear) {
            self.0.extend(
                linear
                    .adapters()
                    .iter()
                    .map(|attached| attached.name.clone()),
            );
        }
    }
    let mut names = Names(BTreeSet::new());
    model.visit("", &mut names);
    names.0
}

/// Visits the linears with this crate's errors.
fn each_linear(
    model: &mut dyn Module,
    mut change: impl FnMut(&str, &mut Linear) -> Result<()>,
) -> Result<()> {
    let mut failure = None;
    let outcome = model.visit_mut("", &mut |path: &str, linear: &mut Linear| {
        change(path, linear).map_err(|error| match error {
            Error::Nn(error) => error,
            other => {
                failure = Some(other);
                ferrotune_nn::Error::Invalid(String::new())
            }
        })
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(outcome?),
    }
}
