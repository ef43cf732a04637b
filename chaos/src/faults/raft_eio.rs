//! The disk of a replica's Raft log refuses to make writes durable.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::control_changes::Changes;
use super::{Fault, Miss, Needs, Strike, Struck, Subject};
use crate::cluster::Cluster;

/// Longest wait for the first write that is refused.
const FELT_WITHIN: Duration = Duration::from_secs(10);
/// How long a replica may take to notice that it has lost its log, and no longer be ready.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);
/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What the tracer writes beside a call that it has spoilt.
const SPOILT: &str = "(INJECTED)";

pub(super) const FAULT: Fault = Fault {
    name: "raft-eio",
    about: "fsync and fdatasync of the leader or a follower fail with EIO for 1 to 5 s",
    subject: Subject::Replicas,
    needs: Needs::Program("strace"),
    strike: |strike| refuse(strike).boxed(),
};

async fn refuse(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    let leader = strike.leader().await?;
    let leads = strike.draw.percent(50);
    let index = if leads { leader } else { (leader + 1 + strike.draw.index(2)) % cluster.size() };
    let pid = cluster.pid(index).await.ok_or("it was gone already")?;
    let trace = cluster.folder().join(format!("strace-{pid}.log"));
    strike.begins(&[index], leads, format!("fsync of replica {} fails; it leads: {leads}", index + 1));
    let mut tracer = Command::new("strace")
        .args(["-f", "-q", "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO", "-p"])
        .arg(pid.to_string())
        .arg("-o")
        .arg(&trace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| error.to_string())?;
    let spoilt = || std::fs::read_to_string(&trace).unwrap_or_default().matches(SPOILT).count();
    let mut changes = Changes::new(strike.draw.between(0, 1 << 32));
    let deadline = Instant::now() + FELT_WITHIN;
    while spoilt() == 0 && Instant::now() < deadline {
        let asked = strike.draw.index(cluster.size());
        changes.make(&cluster, asked).await;
    }
    sleep(strike.draw.milliseconds(1000, 5000)).await;
    let spoilt = spoilt();
    let others = spoilt == 0 || changes.make_without(&cluster, index).await;
    let ready = spoilt > 0 && stays_ready(&cluster, index).await;
    let ended = cluster.pid(index).await.is_none();
    // Killed, it lets go of the replica, which must not be trusted any more: a supervisor would restart it.
    let _ = tracer.kill().await;
    let revived = cluster.revive(index).await;
    strike.heals();
    changes.undo(&cluster).await;
    revived.map_err(Miss::Broke)?;
    if spoilt == 0 {
        return Err("it wrote nothing".into());
    }
    if ready {
        return Err(Miss::Broke(format!("{spoilt} calls failed, and it goes on as ready")));
    }
    if !others {
        return Err(Miss::broke("the others took no change meanwhile"));
    }
    let state = if ended { "ended" } else { "went on, not ready" };
    Ok(format!("{spoilt} calls failed, it {state}; the others took a change meanwhile"))
}

/// Whether a replica is still ready when it must have noticed.
async fn stays_ready(cluster: &Cluster, index: usize) -> bool {
    let deadline = Instant::now() + NOTICED_WITHIN;
    while cluster.replicas.read().await.is_ready(index).await {
        if Instant::now() > deadline {
            return true;
        }
        sleep(LOOK_EVERY).await;
    }
    false
}
