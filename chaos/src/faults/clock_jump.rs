//! The clock of one replica jumps by ten minutes, ahead or back, and a while later to where it was.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use cortex::domain::ambient::{Ambient, System};
use futures::FutureExt;
use tokio::time::sleep;

use super::{Fault, Miss, Needs, Strike, Struck, Subject};
use crate::cluster::{Cluster, Error};

/// By how much.
const MINUTES: i64 = 10;
/// How far the clock that the replica shows may be from what it should be.
const SLACK: TimeDelta = TimeDelta::seconds(5);
/// The setting is read once a second.
const SETTING_IS_READ: Duration = Duration::from_secs(2);

pub(super) const FAULT: Fault = Fault {
    name: "clock-jump",
    about: "the clock of one replica, the leader or another, jumps by 10 minutes either way for 3 to 8 s",
    subject: Subject::Replicas,
    needs: Needs::Program("faketime"),
    strike: |strike| jump(strike).boxed(),
};

async fn jump(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    let library = library().ok_or("libfaketime is not installed")?;
    let index = strike.draw.index(cluster.size());
    let leads = strike.draw.percent(67);
    let minutes = if strike.draw.percent(50) { MINUTES } else { -MINUTES };
    let setting = cluster.folder().join(format!("clock-{}", index + 1));
    let set =
        |minutes: i64| std::fs::write(&setting, format!("{minutes:+}m")).map_err(|error| error.to_string());
    set(0)?;
    let role = if leads { "leads" } else { "may follow" };
    strike.begins(
        &[index],
        false,
        format!("the clock of replica {}, which {role}, jumps by {minutes} min", index + 1),
    );
    // The replica runs under the library for a while, which itself changes nothing yet.
    cluster
        .set_environment(
            index,
            &[
                ("LD_PRELOAD", library.display().to_string()),
                ("FAKETIME_TIMESTAMP_FILE", setting.display().to_string()),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
                ("DONT_FAKE_MONOTONIC", "1".to_owned()),
                ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ],
        )
        .await?;
    cluster.end(index).await.map_err(Miss::Broke)?;
    cluster.revive(index).await.map_err(Miss::Broke)?;
    if leads {
        cluster.make_leader(index).await.map_err(Miss::Broke)?;
    }
    set(minutes)?;
    let has_jumped = || has_jumped(&cluster, index, minutes);
    let jumped = cluster.until("the replica shows another time", has_jumped).await;
    sleep(strike.draw.milliseconds(3000, 8000)).await;
    set(0)?;
    sleep(SETTING_IS_READ).await;
    strike.heals();
    cluster.set_environment(index, &[]).await?;
    let ended = cluster.end(index).await;
    cluster.revive(index).await.map_err(Miss::Broke)?;
    ended.map_err(Miss::Broke)?;
    jumped?;
    let shown = if minutes < 0 { "stood still" } else { "went ahead" };
    Ok(format!("the dates of the answers of replica {} {shown} after {minutes:+} min", index + 1))
}

/// Whether the dates of a replica's answers show that its clock is so many minutes off. A server that finds itself before
/// the date that it gave last goes on giving that one: then the date stands still.
async fn has_jumped(cluster: &Cluster, index: usize, minutes: i64) -> bool {
    let dated = async || -> Result<DateTime<Utc>, Error> {
        let answer = cluster.http.get(format!("http://{}/health/live", cluster.rest(index))).send().await?;
        let date = answer.headers().get(reqwest::header::DATE).ok_or("it has no date")?;
        Ok(DateTime::parse_from_rfc2822(date.to_str()?)?.to_utc())
    };
    let Ok(date) = dated().await else { return false };
    let off = date - System.now();
    if minutes < 0 { off < -SLACK } else { (off - TimeDelta::minutes(minutes)).abs() < SLACK }
}

/// The library for programs with threads, where distributions put it.
fn library() -> Option<PathBuf> {
    let name = "faketime/libfaketimeMT.so.1";
    let folders = [
        format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH),
        "/usr/lib64".to_owned(),
        "/usr/lib".to_owned(),
        "/usr/local/lib".to_owned(),
    ];
    folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists())
}
