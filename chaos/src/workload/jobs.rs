//! What jobs are made of: each carries its own plan, which its worker follows.

use std::time::Duration;

use chrono::TimeDelta;
use cortex::domain::ambient::{Ambient, System};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::draw::Draw;

/// How long a job works that may take one second.
const OVERRUN_MS: u64 = 2500;

/// `input_data` of a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Tells the job from all others, also where the answer of its submission was lost.
    pub number: u64,
    /// How long the work takes.
    pub work_ms: u64,
    /// How many of its first attempts fail.
    pub fails: i32,
    /// Not before this time, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_at: Option<String>,
    /// Takes longer than it may.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overruns: bool,
    /// Kills its worker, whichever that is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub poison: bool,
}

impl Plan {
    /// A plan for the job of this number: mostly short and successful.
    pub fn draw(number: u64, draw: &mut Draw) -> Self {
        let overruns = draw.percent(1);
        let work_ms = match draw.between(0, 100) {
            _ if overruns => OVERRUN_MS,
            0..5 => draw.between(500, 3000),
            _ => draw.between(5, 60),
        };
        let fails = match draw.between(0, 100) {
            0..80 => 0,
            80..92 => 1,
            92..97 => 2,
            _ => 99,
        };
        let run_at = draw.percent(5).then(|| {
            let wait = TimeDelta::milliseconds(draw.between(200, 3000).cast_signed());
            (System.now() + wait).to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
        });
        Self { number, work_ms, fails, run_at, overruns, poison: false }
    }

    /// Has the work take no longer than that.
    pub fn shorten(&mut self, longest: Duration) {
        let longest = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        self.overruns &= self.work_ms <= longest;
        self.work_ms = self.work_ms.min(longest);
    }

    /// How long the work takes.
    pub fn work(&self) -> Duration {
        Duration::from_millis(self.work_ms)
    }

    /// The body of its submission.
    pub fn body(&self, draw: &mut Draw) -> Value {
        let policy = match draw.index(3) {
            0 => json!({"strategy": "fixed", "initial_delay_seconds": 1, "jitter": false}),
            1 => {
                json!({"strategy": "linear", "initial_delay_seconds": 1, "backoff_multiplier": 1.5, "jitter": true})
            }
            _ => json!({"strategy": "exponential", "initial_delay_seconds": 1, "max_delay_seconds": 2}),
        };
        let mut body = json!({
            "name": format!("job-{}", self.number),
            "model_name": format!("m{}", draw.index(4)),
            "model_version": "1",
            "input_data": self,
            "priority": draw.between(1, 11),
            "max_retries": draw.between(1, 4),
            "timeout_seconds": if self.overruns { 1 } else { 20 },
            "metadata": {"retry_policy": policy},
        });
        if let Some(run_at) = &self.run_at {
            body["run_at"] = json!(run_at);
        }
        body
    }
}
