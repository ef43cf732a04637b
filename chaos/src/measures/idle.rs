//! Nothing happens, on a machine that has little time for it.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::{Figure, report};
use crate::cluster::{Cluster, ClusterOptions, Error};
use crate::history::View;

/// Of every stretch of this length a burner takes its share.
const STRETCH: Duration = Duration::from_millis(100);
/// So many looks in a hundred may go without an answer: more, and the replica has not served.
const UNANSWERED: f64 = 5.0;
/// Time between two looks at the group.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What to do.
#[derive(Debug, Clone)]
pub struct IdleOptions {
    /// How long.
    pub duration: Duration,
    /// Share of every core that is taken by others, in percent.
    pub share: u32,
    /// Where everything is written; must not exist.
    pub folder: PathBuf,
}

/// Keeps every core busy and watches whether the leader stays.
///
/// # Errors
/// When the cluster does not come up or something cannot be written.
pub async fn idle(options: &IdleOptions) -> Result<bool, Error> {
    std::fs::create_dir_all(&options.folder)?;
    let cluster = Cluster::start(&options.folder.join("cluster"), ClusterOptions::default()).await?;
    let cores = std::thread::available_parallelism()?.get();
    let burners: Vec<Child> = (0..cores).map(|_| burner(options.share)).collect::<Result<_, _>>()?;
    let leader = cluster.leader_other_than(None).await?;
    let first = cluster.view(leader).await.ok_or("the leader does not answer")?;
    let (end, mut changes, mut last) = (Instant::now() + options.duration, Vec::new(), first.clone());
    let (mut looks, mut unanswered) = (0_u32, 0_u32);
    while Instant::now() < end {
        sleep(LOOK_EVERY).await;
        looks += 1;
        match cluster.view(leader).await {
            Some(view) => {
                if is_other(&view, &last) {
                    changes.push(json!({"after_s": (options.duration.saturating_sub(end - Instant::now())).as_secs_f64(), "view": view}));
                }
                last = view;
            }
            None => unanswered += 1,
        }
    }
    drop(burners);
    cluster.stop().await;
    std::fs::write(options.folder.join("changes.json"), serde_json::to_vec_pretty(&changes)?)?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let figures = [
        Figure::new("terms gone by", "", (last.term - first.term) as f64, Some(0.0)),
        Figure::new("changes of the leader or its term that were seen", "", changes.len() as f64, Some(0.0)),
        Figure::new(
            "looks without an answer within a second",
            "%",
            f64::from(unanswered) * 100.0 / f64::from(looks.max(1)),
            Some(UNANSWERED),
        ),
        Figure::new("minutes", "min", options.duration.as_secs_f64() / 60.0, None),
        Figure::new("cores kept busy", "", cores as f64, None),
        Figure::new("their share", "%", f64::from(options.share), None),
    ];
    report(&options.folder, &figures)
}

/// Keeps one core busy for a share of the time, as long as whoever started it lives.
pub fn burn(share: u32) {
    let parent = nix::unistd::getppid();
    let busy = STRETCH * share.min(100) / 100;
    let mut sum = 0_u64;
    while nix::unistd::getppid() == parent {
        let began = Instant::now();
        while began.elapsed() < busy {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        std::thread::sleep(STRETCH.saturating_sub(began.elapsed()));
    }
}

fn burner(share: u32) -> Result<Child, Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("burn").arg("--share").arg(share.to_string()).stdin(Stdio::null()).kill_on_drop(true);
    Ok(command.spawn()?)
}

fn is_other(view: &View, last: &View) -> bool {
    (view.term, view.leader, view.epoch) != (last.term, last.leader, last.epoch)
}
