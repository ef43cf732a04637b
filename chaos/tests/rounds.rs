//! Three minutes under faults, with fixed seeds.

use std::path::Path;
use std::process::Command;

/// Rounds of half a minute each.
const ROUNDS: &str = "6";

#[test]
fn a_short_campaign_keeps_every_promise() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos-rounds");
    // Left by a run that failed: what it found is looked for anew.
    let _ = std::fs::remove_dir_all(&folder);
    let mut chaos = Command::new(env!("CARGO_BIN_EXE_cortex-chaos"));
    chaos.args(["campaign", "--rounds", ROUNDS, "--duration", "30s", "--seed", "1", "--output"]).arg(&folder);
    let status = chaos.status().unwrap();
    let report = std::fs::read_to_string(folder.join("report.md")).unwrap_or_default();
    assert!(status.success(), "{status}\n{report}");
    std::fs::remove_dir_all(&folder).unwrap();
}
