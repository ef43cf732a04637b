//! Whether the harness would notice: CORTEX is run with one defect at a time, until a promise is seen broken.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::checks::Verdict;
use crate::cluster::{Error, NetworkKind};
use crate::faults::Fault;
use crate::history::History;
use crate::report::Summary;
use crate::run::{self, RunOptions};
use crate::workload::Size;

/// A defect, and where it shows.
pub struct Defect {
    /// As the product's `CORTEX_PLANT` takes it.
    pub name: &'static str,
    /// What is wrong.
    pub about: &'static str,
    /// Faults that bring it out.
    faults: &'static [&'static str],
    /// The promises by which it shows. A busy machine can break others by itself.
    breaks: &'static [&'static str],
}

/// All that are looked for.
pub const DEFECTS: &[Defect] = &[
    Defect {
        name: "fence_off",
        about: "a former leader's writes are let through",
        faults: &["freeze-leader", "partition-leader"],
        breaks: &["S4", "S7", "S11", "S11R", "V1"],
    },
    Defect {
        name: "lease_token_ignored",
        about: "a report counts whatever lease it names",
        faults: &["zombie-worker", "worker-crash"],
        breaks: &["S4", "S6", "S7"],
    },
    Defect {
        name: "retries_early",
        about: "retries do not wait for their time",
        faults: &["kill-follower"],
        breaks: &["S9"],
    },
    Defect {
        name: "redis_trusted",
        about: "what the queue hands out is run, whatever the table says",
        faults: &["redis-forge", "redis-flush"],
        breaks: &["S4", "S7", "S8", "S9", "S10", "S13"],
    },
    Defect {
        name: "completion_before_commit",
        about: "a completion is acknowledged before it is committed",
        faults: &["kill-leader", "postgres-connections", "postgres-restart"],
        breaks: &["S4", "S6", "S7"],
    },
    Defect {
        name: "claims_not_recovered",
        about: "jobs that a former leader had claimed are forgotten",
        faults: &["kill-leader", "kill-all"],
        breaks: &["V1"],
    },
    Defect {
        name: "deposed_reports_accepted",
        about: "a former leader goes on to accept reports",
        faults: &["freeze-leader"],
        breaks: &["S1", "S4", "S6", "S7"],
    },
    Defect {
        name: "fsync_left_out",
        about: "the Raft log answers before its bytes are on disk",
        faults: &["power-cut"],
        breaks: &["R1", "S12"],
    },
];

/// What became of one defect.
#[derive(Debug, Serialize)]
pub struct Caught {
    /// The defect.
    pub defect: String,
    /// In which round it was caught; `None` if in none.
    pub round: Option<u64>,
    /// The promises that were seen broken in that round.
    pub promises: Vec<String>,
    /// One of the violations.
    pub violation: Option<String>,
}

impl Caught {
    fn not_yet(defect: &str) -> Self {
        Self { defect: defect.to_owned(), round: None, promises: Vec::new(), violation: None }
    }
}

/// Looks for each of these defects in so many rounds at the most.
///
/// # Errors
/// When a round cannot be run at all.
pub async fn run(
    defects: &[&'static Defect],
    rounds: u64,
    duration: Duration,
    folder: &Path,
) -> Result<Vec<Caught>, Error> {
    if !cfg!(feature = "planted-defects") {
        return Err("this build can carry no defects: build it with --features planted-defects".into());
    }
    let mut wanted =
        defects.iter().flat_map(|defect| defect.faults.iter().map(|fault| (defect.name, *fault)));
    let impossible = |(_, fault): &(&str, &str)| !Fault::named(fault).is_some_and(Fault::is_possible);
    if let Some((defect, fault)) = wanted.find(impossible) {
        let why = format!(
            "{defect} shows under {fault}, which this machine does not allow; --defects names others"
        );
        return Err(why.into());
    }
    let mut all = Vec::new();
    for defect in defects {
        let place = folder.join(defect.name);
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        let caught = look_for(defect, rounds, duration, &place).await?;
        match caught.round {
            Some(round) => {
                println!("{}: caught in round {round} by {}", defect.name, caught.promises.join(", "))
            }
            None => println!("{}: NOT caught in {rounds} rounds", defect.name),
        }
        all.push(caught);
        fs::write(folder.join("planted.json"), serde_json::to_vec_pretty(&all)?)?;
    }
    Ok(all)
}

async fn look_for(defect: &Defect, rounds: u64, duration: Duration, folder: &Path) -> Result<Caught, Error> {
    let mut caught = Caught::not_yet(defect.name);
    for round in 1..=rounds {
        let place = folder.join(format!("round-{round:02}"));
        let summary = run_round(defect, round, duration, &place).await?;
        for judgement in &summary.judgements {
            let Verdict::Fail { violations, .. } = &judgement.verdict else { continue };
            if defect.breaks.contains(&judgement.promise.as_str()) {
                caught.round = Some(round);
                caught.promises.push(judgement.promise.clone());
                caught.violation = caught.violation.or_else(|| violations.first().cloned());
            }
        }
        if caught.round.is_some() {
            break;
        }
    }
    Ok(caught)
}

async fn run_round(defect: &Defect, round: u64, duration: Duration, folder: &Path) -> Result<Summary, Error> {
    let options = RunOptions {
        seed: round,
        duration,
        faults: defect.faults.to_vec(),
        folder: folder.to_owned(),
        network: NetworkKind::Loopback,
        size: Size::default(),
        planted: Some(defect.name.to_owned()),
    };
    run::run(&options).await?;
    let summary = Summary::of(&History::read(folder)?);
    summary.write(folder)?;
    run::tidy(folder);
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_defect_names_faults_that_there_are() {
        for defect in DEFECTS {
            for name in defect.faults {
                assert!(Fault::named(name).is_some(), "{}: no fault is called {name}", defect.name);
            }
        }
    }
}
