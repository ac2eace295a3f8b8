//! Nothing: the programs stand in the folder above, and what they do is in the crates.
