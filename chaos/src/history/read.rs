//! Reads a history back.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::last::Final;
use super::record::{Act, Line, NO_SUCCESSOR, Outcome, Phase, Record, RedisAct, Request, Stage, View};

/// What was run: `run.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunInfo {
    /// Where all randomness came from.
    pub seed: u64,
    /// How long load and faults lasted, in seconds.
    pub duration_s: f64,
    /// `loopback` or `netns`.
    pub network: String,
    /// Names of the faults that might strike.
    pub faults: Vec<String>,
    /// Names of the kinds of faults that the machine does not allow, in histories that have it.
    #[serde(default)]
    pub not_allowed: Vec<String>,
    /// Number of replicas at the start.
    pub replicas: usize,
    /// Slots of all workers together: what can run at a time.
    pub slots: usize,
    /// Whether workers note their effects; in older histories they do not.
    #[serde(default)]
    pub effects: bool,
    /// When it began, by the wall clock.
    pub started_at: DateTime<Utc>,
    /// The command that runs it again.
    pub command: String,
    /// The product's version and build.
    pub version: String,
    /// The planted defect, if any.
    pub planted: Option<String>,
}

/// A call with its outcome.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its number.
    pub call: u64,
    /// Who called.
    pub client: String,
    /// Index of the replica.
    pub replica: usize,
    /// What was asked for.
    pub request: Request,
    /// When it was sent, in microseconds since the run began.
    pub start: u64,
    /// When it came back; `None` if it never did.
    pub end: Option<u64>,
    /// What came of it; unknown if it never came back.
    pub outcome: Outcome,
}

/// A fault from its beginning to its end.
#[derive(Debug, Clone)]
pub struct FaultRun {
    /// Its number.
    pub fault: u64,
    /// Its name.
    pub name: String,
    /// Replicas that it struck, by index.
    pub replicas: Vec<usize>,
    /// Whether it struck the leader.
    pub leader: bool,
    /// What exactly was done.
    pub detail: String,
    /// When it began.
    pub begun: u64,
    /// When what it broke was whole again.
    pub healed: Option<u64>,
    /// When it was over.
    pub over: Option<u64>,
    /// What shows that it bit.
    pub proof: Option<String>,
    /// What the product did that it must not do when it is struck in this way, or at any time.
    pub broke: Option<String>,
    /// Whether that is that nobody came to lead in the place of a leader that was cut off.
    pub no_successor: bool,
}

/// A whole run, read back.
#[derive(Debug)]
pub struct History {
    /// What was run.
    pub info: RunInfo,
    /// Calls in the order in which they were sent.
    pub calls: Vec<Call>,
    /// What workers did, in order: when, who, what.
    pub acts: Vec<(u64, String, Act)>,
    /// Faults in the order of their beginning.
    pub faults: Vec<FaultRun>,
    /// Strikes that found nothing to strike, without the product's fault: when they gave up, and their names.
    pub misses: Vec<(u64, String)>,
    /// Views of the group: when, index of the replica, process id, view.
    pub views: Vec<(u64, usize, Option<u32>, View)>,
    /// Processes of replicas that were seen to have ended: when, index of the replica, how.
    pub exits: Vec<(u64, usize, String)>,
    /// Replicas that were not ready at the end, by index.
    pub not_ready: Vec<usize>,
    /// When, and how many jobs were pending, queued, active and finished.
    pub depths: Vec<(u64, [i64; 4])>,
    /// What was seen in Redis' own stream of commands, in order.
    pub redis: Vec<(u64, RedisAct)>,
    /// When each stretch of the run began.
    pub stages: Vec<(u64, Stage)>,
    /// What was in the stores at the end; `None` if the run did not get that far.
    pub last: Option<Final>,
    /// What `cortex verify` said at the end.
    pub verify: Option<Value>,
    /// By index of the replica, lines of its log that tell of a panic; `None` if the run did not get that far.
    pub panics: Option<BTreeMap<usize, Vec<String>>>,
}

impl History {
    /// Reads the folder of a run.
    ///
    /// # Errors
    /// When a file is missing or a line cannot be read. A last line that was not written to its end is left out.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let info = serde_json::from_slice(&fs::read(folder.join("run.json"))?)?;
        let mut history = Self {
            info,
            calls: Vec::new(),
            acts: Vec::new(),
            faults: Vec::new(),
            misses: Vec::new(),
            views: Vec::new(),
            exits: Vec::new(),
            not_ready: Vec::new(),
            depths: Vec::new(),
            redis: Vec::new(),
            stages: Vec::new(),
            last: Final::read(folder)?,
            verify: read_if_any(&folder.join("verify.json"))?,
            panics: read_if_any(&folder.join("panics.json"))?,
        };
        let mut places = BTreeMap::new();
        let mut lines = BufReader::new(File::open(folder.join("history.jsonl"))?).lines().peekable();
        while let Some(text) = lines.next() {
            let text = text?;
            match serde_json::from_str(&text) {
                Ok(line) => history.add(line, &mut places),
                Err(_) if lines.peek().is_none() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(history)
    }

    /// When a stretch of the run began.
    pub fn stage(&self, stage: Stage) -> Option<u64> {
        self.stages.iter().find(|(_, begun)| *begun == stage).map(|(at, _)| *at)
    }

    fn add(&mut self, line: Line, places: &mut BTreeMap<u64, usize>) {
        let at = line.at;
        match line.record {
            Record::Begin { call, client, replica, request } => {
                places.insert(call, self.calls.len());
                let outcome = Outcome::Unknown { why: "it never came back".to_owned() };
                self.calls.push(Call { call, client, replica, request, start: at, end: None, outcome });
            }
            Record::End { call, outcome } => {
                if let Some(place) = places.get(&call) {
                    let call = &mut self.calls[*place];
                    (call.end, call.outcome) = (Some(at), outcome);
                }
            }
            Record::Worker { worker, act } => self.acts.push((at, worker, act)),
            Record::Fault { fault, name, phase } => self.add_phase(at, fault, name, phase),
            Record::View { replica, pid, view } => self.views.push((at, replica, pid, view)),
            Record::Exit { replica, status } => self.exits.push((at, replica, status)),
            Record::NotReady { replica } => self.not_ready.push(replica),
            Record::Depth { pending, queued, active, finished } => {
                self.depths.push((at, [pending, queued, active, finished]));
            }
            Record::Redis { act } => self.redis.push((at, act)),
            Record::Stage { stage } => self.stages.push((at, stage)),
        }
    }

    fn add_phase(&mut self, at: u64, fault: u64, name: String, phase: Phase) {
        let place = self.faults.iter().rposition(|run| run.fault == fault);
        let run = |replicas, leader, detail| FaultRun {
            fault,
            name: name.clone(),
            replicas,
            leader,
            detail,
            begun: at,
            healed: None,
            over: None,
            proof: None,
            broke: None,
            no_successor: false,
        };
        match (phase, place) {
            (Phase::Begins { replicas, leader, detail }, _) => {
                self.faults.push(run(replicas, leader, detail));
            }
            (Phase::Heals, Some(place)) => self.faults[place].healed = Some(at),
            (Phase::Over { proof, broke, no_successor }, Some(place)) => {
                let no_successor = no_successor || broke.as_deref() == Some(NO_SUCCESSOR);
                let run = &mut self.faults[place];
                (run.over, run.proof, run.broke, run.no_successor) = (Some(at), proof, broke, no_successor);
            }
            // It did not come to strike, for the product did not do what it owes at any time.
            (Phase::Over { broke: Some(broke), .. }, None) => {
                let run = run(Vec::new(), false, String::new());
                self.faults.push(FaultRun { over: Some(at), broke: Some(broke), ..run });
            }
            (_, None) => self.misses.push((at, name)),
        }
    }
}

/// What a file of JSON holds; `None` if there is no such file.
fn read_if_any<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a history of these phases of faults, by the number of the fault.
    fn read(name: &str, phases: &[(u64, &str)]) -> History {
        let folder = std::env::temp_dir().join(format!("cortex-history-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let run = r#"{"seed": 1, "duration_s": 1.0, "network": "loopback", "faults": [], "replicas": 3, "slots": 1,
            "started_at": "2026-01-01T00:00:00Z", "command": "", "version": "", "planted": null}"#;
        fs::write(folder.join("run.json"), run).unwrap();
        let lines = phases.iter().map(|(fault, phase)| {
            format!(
                r#"{{"at": {}, "kind": "fault", "fault": {fault}, "name": "fault-{fault}", "phase": {phase}}}"#,
                fault * 10
            )
        });
        fs::write(folder.join("history.jsonl"), lines.collect::<Vec<_>>().join("\n")).unwrap();
        let history = History::read(&folder).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        history
    }

    const BEGINS: &str = r#"{"phase": "begins", "replicas": [0], "leader": true, "detail": ""}"#;

    #[test]
    fn a_strike_that_never_began_is_a_miss_and_no_fault() {
        let over = r#"{"phase": "over", "proof": null, "broke": null}"#;
        let history = read("misses", &[(1, BEGINS), (1, over), (2, over)]);
        assert_eq!(history.faults.iter().map(|fault| fault.fault).collect::<Vec<_>>(), [1]);
        assert_eq!(history.misses, [(20, "fault-2".to_owned())]);
    }

    #[test]
    fn a_strike_that_never_began_for_nobody_led_is_a_fault() {
        let broke = r#"{"phase": "over", "proof": null, "broke": "no leader", "no_successor": false}"#;
        let history = read("broke", &[(3, broke)]);
        assert!(history.misses.is_empty());
        let [fault] = history.faults.as_slice() else { panic!("{:?}", history.faults) };
        assert_eq!((fault.name.as_str(), fault.begun, fault.over), ("fault-3", 30, Some(30)));
        assert_eq!(fault.broke.as_deref(), Some("no leader"));
        assert!(fault.replicas.is_empty() && !fault.leader && fault.healed.is_none());
    }

    #[test]
    fn older_histories_say_in_words_alone_that_nobody_came_to_lead() {
        let older = r#"{"phase": "over", "proof": null, "broke": "nobody else has come to lead meanwhile"}"#;
        let newer = r#"{"phase": "over", "proof": null, "broke": "nobody", "no_successor": true}"#;
        let other = r#"{"phase": "over", "proof": null, "broke": "the replicas see two leaders"}"#;
        let phases = [(1, BEGINS), (1, older), (2, BEGINS), (2, newer), (3, BEGINS), (3, other)];
        let history = read("older", &phases);
        let without = history.faults.iter().map(|fault| fault.no_successor);
        assert_eq!(without.collect::<Vec<_>>(), [true, true, false]);
    }
}
