//! Many rounds, one seed each, which can be broken off and taken up again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::cluster::{Error, NetworkKind};
use crate::draw::Draw;
use crate::faults;
use crate::history::History;
use crate::report::{Overall, Report, Summary};
use crate::run::{self, RunOptions};
use crate::workload::Size;

/// What to run. Kept as `campaign.json`: whoever goes on must want the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CampaignOptions {
    /// Number of rounds.
    pub rounds: u64,
    /// Seed of the first round; each further one has the next.
    pub first_seed: u64,
    /// How long load and faults last in each, in seconds.
    pub round_s: f64,
    /// How many kinds of faults each round has, drawn by its seed.
    pub kinds: usize,
    /// `loopback` or `netns`.
    pub network: String,
    /// The kinds to draw from.
    pub faults: Vec<String>,
    /// The command that does it all again.
    pub command: String,
    /// What tells this build from others, so that one report is not of two.
    pub build: String,
}

/// Size of the running program, in bytes, and when it was built, in seconds since 1970.
///
/// # Errors
/// When the program cannot be found.
pub fn build() -> Result<String, Error> {
    let program = fs::metadata(std::env::current_exe()?)?;
    let built = program.modified()?.duration_since(UNIX_EPOCH)?.as_secs();
    Ok(format!("{} bytes, {built}", program.len()))
}

/// Runs what is not yet run, and reports on everything.
///
/// # Errors
/// When the folder holds another campaign, or a round could not be run at all.
pub async fn run(options: &CampaignOptions, folder: &Path) -> Result<Overall, Error> {
    fs::create_dir_all(folder)?;
    take_up(options, folder)?;
    let mut rounds = Vec::new();
    for number in 0..options.rounds {
        let seed = options.first_seed + number;
        let place = folder.join(format!("round-{seed:04}"));
        let summary = match Summary::read(&place)? {
            Some(summary) => summary,
            None => run_round(options, seed, place.clone()).await?,
        };
        println!(
            "round {} of {}, seed {seed}: {}, {} jobs, {} faults",
            number + 1,
            options.rounds,
            summary.overall().word(),
            summary.acknowledged,
            summary.faults.values().map(|(count, _)| count).sum::<u64>(),
        );
        rounds.push(summary);
        report(options, folder, rounds.clone())?;
    }
    Ok(report(options, folder, rounds)?.overall())
}

fn take_up(options: &CampaignOptions, folder: &Path) -> Result<(), Error> {
    let path = folder.join("campaign.json");
    match fs::read(&path) {
        Ok(text) if serde_json::from_slice::<CampaignOptions>(&text)? == *options => Ok(()),
        Ok(_) => Err(format!("{} holds another campaign, or one of another build", folder.display()).into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(fs::write(&path, serde_json::to_vec_pretty(options)?)?)
        }
        Err(error) => Err(error.into()),
    }
}

async fn run_round(options: &CampaignOptions, seed: u64, folder: PathBuf) -> Result<Summary, Error> {
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let options = RunOptions {
        seed,
        duration: Duration::try_from_secs_f64(options.round_s)?,
        faults: kinds(options, seed),
        network: NetworkKind::named(&options.network).ok_or("there is no such network")?,
        folder: folder.clone(),
        size: Size::default(),
        planted: None,
    };
    run::run(&options).await?;
    let history = History::read(&folder)?;
    let summary = Summary::of(&history);
    if summary.overall() == Overall::Pass {
        run::tidy(&folder);
    }
    // Last: a round without it is run again.
    summary.write(&folder)?;
    Ok(summary)
}

/// The kinds of faults of one round.
fn kinds(options: &CampaignOptions, seed: u64) -> Vec<&'static str> {
    let mut left: Vec<_> = options
        .faults
        .iter()
        .filter_map(|name| faults::Fault::named(name))
        .filter(|fault| fault.is_possible())
        .map(|fault| fault.name)
        .collect();
    let mut draw = Draw::new(seed, "kinds");
    let mut kinds = Vec::new();
    while kinds.len() < options.kinds && !left.is_empty() {
        kinds.push(left.swap_remove(draw.index(left.len())));
    }
    kinds.sort_unstable();
    kinds
}

/// The picture is of the first round that is no pass, or of the last one.
fn report(options: &CampaignOptions, folder: &Path, rounds: Vec<Summary>) -> Result<Report, Error> {
    let shown = rounds.iter().find(|round| round.overall() != Overall::Pass).or(rounds.last());
    let history = match shown {
        Some(round) => Some(History::read(&folder.join(format!("round-{:04}", round.info.seed)))?),
        None => None,
    };
    let title = "CORTEX under faults: a campaign".to_owned();
    let report = Report { title, command: options.command.clone(), rounds };
    report.write(folder, history.as_ref())?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_draws_the_same_kinds_and_seeds_draw_different_ones() {
        let options = CampaignOptions {
            rounds: 1,
            first_seed: 1,
            round_s: 1.0,
            kinds: 3,
            network: "loopback".to_owned(),
            faults: faults::ALL.iter().map(|fault| fault.name.to_owned()).collect(),
            command: String::new(),
            build: String::new(),
        };
        assert_eq!(kinds(&options, 7), kinds(&options, 7));
        let drawn: std::collections::BTreeSet<_> = (0..200).flat_map(|seed| kinds(&options, seed)).collect();
        let possible = faults::ALL.iter().filter(|fault| fault.is_possible()).count();
        assert_eq!(drawn.len(), possible, "every kind comes up");
    }
}
