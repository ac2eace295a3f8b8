//! What the comparisons with other programs share: processes that do a piece of work for each line
//! ([`peer`]), median and quartiles ([`quartiles`]), and figures of this process ([`process`]) and of
//! the machine ([`machine`]).

pub mod machine;
pub mod peer;
pub mod process;
pub mod quartiles;
