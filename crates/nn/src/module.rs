//! What every layer offers: a visit of its parameters, linears and blocks by checkpoint path.

use crate::{Block, Error, Linear, Param, Result};
use std::collections::HashSet;
use std::sync::Arc;

/// A layer or model. [`module!`](macro@crate::module) writes the implementation for a struct.
///
/// Paths are those of the checkpoint, `model.layers.0.self_attn.q_proj`: the one name for target
/// modules, sharding plans and saved keys.
pub trait Module: Send + Sync {
    /// Shows every part to `visitor`, parents before children.
    fn visit(&self, path: &str, visitor: &mut dyn Visitor);

    /// Shows every linear, to be changed.
    ///
    /// # Errors
    /// The visitor's first, or a block that a graph still holds.
    fn visit_mut(&mut self, path: &str, visitor: &mut dyn VisitorMut) -> Result<()>;
}

/// Sees the parts of a module. Each method defaults to doing nothing.
pub trait Visitor {
    /// A parameter; a tied one is shown once for each of its places.
    fn param(&mut self, _path: &str, _param: &Param) {}
    /// A linear; its parameters follow.
    fn linear(&mut self, _path: &str, _linear: &Linear) {}
    /// A block, the unit of checkpointing and sharding; its parts follow.
    fn block(&mut self, _path: &str) {}
}

/// Changes the linears of a module.
pub trait VisitorMut {
    /// A linear at `path`.
    ///
    /// # Errors
    /// Whatever stops the visit.
    fn linear(&mut self, path: &str, linear: &mut Linear) -> Result<()>;
}

impl<F: FnMut(&str, &mut Linear) -> Result<()>> VisitorMut for F {
    fn linear(&mut self, path: &str, linear: &mut Linear) -> Result<()> {
        self(path, linear)
    }
}

/// Joins two parts of a path; an empty part adds nothing.
pub fn join(path: &str, name: &str) -> String {
    match (path.is_empty(), name.is_empty()) {
        (true, _) => name.to_owned(),
        (_, true) => path.to_owned(),
        _ => format!("{path}.{name}"),
    }
}

/// Every parameter with its path. A tied parameter counts once, under its first path.
pub fn params(module: &dyn Module) -> Vec<(String, Param)> {
    struct Collect(Vec<(String, Param)>, HashSet<usize>);
    impl Visitor for Collect {
        fn param(&mut self, path: &str, param: &Param) {
            if self.1.insert(param.id()) {
                self.0.push((path.to_owned(), param.clone()));
            }
        }
    }
    let mut collect = Collect(Vec::new(), HashSet::new());
    module.visit("", &mut collect);
    collect.0
}

/// The parameters that train, each once.
pub fn trainable(module: &dyn Module) -> Vec<(String, Param)> {
    params(module)
        .into_iter()
        .filter(|(_, param)| param.trainable())
        .collect()
}

/// The paths of all linears.
pub fn linear_paths(module: &dyn Module) -> Vec<String> {
    struct Collect(Vec<String>);
    impl Visitor for Collect {
        fn linear(&mut self, path: &str, _: &Linear) {
            self.0.push(path.to_owned());
        }
    }
    let mut collect = Collect(Vec::new());
    module.visit("", &mut collect);
    collect.0
}

/// Freezes or thaws every parameter.
///
/// # Errors
/// An integer parameter cannot train.
pub fn set_trainable(module: &dyn Module, trainable: bool) -> Result<()> {
    params(module)
        .iter()
        .try_for_each(|(_, param)| param.set_trainable(trainable))
}

impl Module for Param {
    fn visit(&self, path: &str, visitor: &mut dyn Visitor) {
        visitor.param(path, self);
    }
    fn visit_mut(&mut self, _: &str, _: &mut dyn VisitorMut) -> Result<()> {
        Ok(())
    }
}

impl<M: Module> Module for Option<M> {
    fn visit(&self, path: &str, visitor: &mut dyn Visitor) {
        if let Some(module) = self {
            module.visit(path, visitor);
        }
    }
    fn visit_mut(&mut self, path: &str, visitor: &mut dyn VisitorMut) -> Result<()> {
        self.as_mut()
            .map_or(Ok(()), |module| module.visit_mut(path, visitor))
    }
}

impl<M: Module> Module for Vec<M> {
    fn visit(&self, path: &str, visitor: &mut dyn Visitor) {
        for (i, module) in self.iter().enumerate() {
            module.visit(&join(path, &i.to_string()), visitor);
        }
    }
    fn visit_mut(&mut self, path: &str, visitor: &mut dyn VisitorMut) -> Result<()> {
        for (i, module) in self.iter_mut().enumerate() {
            module.visit_mut(&join(path, &i.to_string()), visitor)?;
        }
        Ok(())
    }
}

/// Blocks are shared with the graphs that will run them again.
impl<B: Block> Module for Arc<B> {
    fn visit(&self, path: &str, visitor: &mut dyn Visitor) {
        visitor.block(path);
        self.as_ref().visit(path, visitor);
    }
    fn visit_mut(&mut self, path: &str, visitor: &mut dyn VisitorMut) -> Result<()> {
        Arc::get_mut(self)
            .ok_or_else(|| Error::InUse(path.to_owned()))?
            .visit_mut(path, visitor)
    }
}

/// Implements [`Module`] for a struct by listing its fields: `module!(Mlp { up_proj, down_proj })`.
/// A field whose name in the checkpoint differs is written `field: "name"`.
#[macro_export]
macro_rules! module {
    ($type:ty { $($field:ident $(: $name:expr)?),* $(,)? }) => {
        impl $crate::Module for $type {
            fn visit(&self, path: &str, visitor: &mut dyn $crate::Visitor) {
                $($crate::Module::visit(
                    &self.$field,
                    &$crate::module::join(path, $crate::module!(@name self $field $($name)?)),
                    visitor,
                );)*
            }
            fn visit_mut(
                &mut self,
                path: &str,
                visitor: &mut dyn $crate::VisitorMut,
            ) -> $crate::Result<()> {
                $({
                    let path = $crate::module::join(path, $crate::module!(@name self $field $($name)?));
                    $crate::Module::visit_mut(&mut self.$field, &path, visitor)?;
                })*
                Ok(())
            }
        }
    };
    (@name $self:ident $field:ident $name:expr) => { $name };
    (@name $self:ident $field:ident) => { stringify!($field) };
}
