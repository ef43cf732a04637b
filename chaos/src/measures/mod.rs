//! Promises that are figures: each is a run of its own, which prints what it measured and writes it down as JSON.

mod flush;
mod idle;
mod reconnect;
mod waits;

use std::path::Path;

use serde::Serialize;

use crate::cluster::Error;

pub use flush::{FlushOptions, flush};
pub use idle::{IdleOptions, burn, idle};
pub use reconnect::{ReconnectOptions, reconnect};

/// A figure and the bar that it must not exceed.
#[derive(Debug, Clone, Serialize)]
struct Figure {
    name: &'static str,
    unit: &'static str,
    value: f64,
    at_most: Option<f64>,
}

impl Figure {
    fn new(name: &'static str, unit: &'static str, value: f64, at_most: Option<f64>) -> Self {
        Self { name, unit, value, at_most }
    }

    fn is_kept(&self) -> bool {
        self.at_most.is_none_or(|bar| self.value <= bar)
    }
}

/// Prints the figures, writes them down, and answers whether all bars were kept.
fn report(folder: &Path, figures: &[Figure]) -> Result<bool, Error> {
    std::fs::write(folder.join("figures.json"), serde_json::to_vec_pretty(figures)?)?;
    for figure in figures {
        let bar = figure.at_most.map(|bar| format!("at most {bar}")).unwrap_or_default();
        let verdict = match (figure.at_most, figure.is_kept()) {
            (None, _) => "",
            (_, true) => "kept",
            (_, false) => "BROKEN",
        };
        println!("{:52} {:12.1} {:3}  {bar:14} {verdict}", figure.name, figure.value, figure.unit);
    }
    Ok(figures.iter().all(Figure::is_kept))
}
