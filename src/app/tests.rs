use super::*;
use crate::config::Environment;

fn config(sections: &str) -> Config {
    let stores =
        "database: {url: 'postgres://u@db/c', pool_recycle: 77}\nqueue: {redis_url: 'redis://r:1'}\n";
    Config::from_yaml(&format!("{stores}{sections}"), &Environment::default()).unwrap()
}

#[test]
fn the_group_is_told_the_configured_times() {
    let cluster =
        cluster_config(&config("cluster: {heartbeat_ms: 100, election_timeout_ms: [300, 600]}"), None);
    assert_eq!(cluster.heartbeat, Duration::from_millis(100));
    assert_eq!(cluster.election_timeout, (Duration::from_millis(300), Duration::from_millis(600)));
}

#[test]
fn the_pools_are_told_the_configured_age() {
    assert_eq!(database_options(&config("").database).max_lifetime, Duration::from_secs(77));
}

#[tokio::test]
async fn traces_are_made_unless_tracing_is_off_and_begin_as_often_as_is_configured() {
    let (metrics, ambient) = (Metrics::new(), Arc::new(System) as Arc<dyn Ambient>);
    let with = |keys: &str| {
        // Nobody listens there, and nothing is sent.
        let observability = format!("observability: {{otlp_endpoint: 'http://127.0.0.1:9'{keys}}}");
        tracer(&config(&observability), &ambient, &metrics).unwrap()
    };
    let off = with(", tracing_enabled: false");
    assert!(off.now().is_none() && off.serve(None, true, String::new).is_none());
    let (all, none) = (with(""), with(", trace_sample_ratio: 0"));
    assert!(all.now().is_some() && none.now().is_some());
    for _ in 0..100 {
        all.serve(None, true, String::new).unwrap().forget();
        assert!(none.serve(None, true, String::new).is_none());
    }
    for tracer in [all, none] {
        tracer.stop(SPANS_WITHIN).await;
    }
}
