//! Every key of the configuration: its type, default, unit and limits.
//!
//! The documentation of a field gives the default and the limits of the key of the same name; where a
//! field is called differently (a [`Duration`] needs no unit in its name), it names the key.

mod model;
mod read;

#[cfg(test)]
mod tests;

pub use model::*;
