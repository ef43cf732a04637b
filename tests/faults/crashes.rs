//! The leader dies between two steps that belong together.

use std::fs;
use std::time::Duration;


use crate::load::Load;
use crate::scene::Scene;

const WORK: Duration = Duration::from_millis(30);

/// Every point of `cortex::services::crash`.
const POINTS: [&str; 6] = ["claimed", "assigned", "fetched", "applied", "submitted", "before_queue"];

#[tokio::test]
async fn a_leader_that_dies_between_two_steps_loses_nothing_and_repeats_nothing() {
    let mut scene = Scene::with(|builder, folder| {
        builder.env("CORTEX_CRASH_POINTS", folder.to_string_lossy())
    })
    .await;
    let folder = scene.cluster.data_dir().parent().unwrap().to_owned();
    scene.start_worker("worker-1", 8, WORK);
    scene.start_worker("worker-2", 8, WORK);
    let mut all = crate::load::Tally::default();
    for point in POINTS {
        let leader = scene.leader().await;
        let load = Load::start(&scene.http, &scene.http_of(&scene.others(leader)));
        load.accepts(20).await;
        fs::write(folder.join(point), "").unwrap();
        let ended = scene.cluster.wait_for_exit(leader).await.unwrap();
        assert!(!ended.success() && !folder.join(point).exists(), "{point}: {ended}");
        load.accepts(20).await;
        scene.leader_other_than(leader).await;
        scene.revive(leader).await;
        let tally = load.finish().await;
        println!("{point}: {} accepted, {} refused, {} unknown", tally.accepted.len(), tally.refused, tally.unknown);
        all.add(tally);
        scene.check(&all).await;
    }
}
