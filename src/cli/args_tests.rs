use clap::CommandFactory;
use clap::error::ErrorKind;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_tree_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn dev_has_the_documented_defaults() {
    let Command::Dev(dev) = parse("cortex dev").unwrap().command else { panic!("not dev") };
    assert_eq!((dev.replicas, dev.workers), (3, 2));
    assert_eq!((dev.http_port, dev.grpc_port, dev.peer_port), (8080, 9090, 7070));
    assert_eq!(dev.data_dir.to_str(), Some(".cortex"));
    assert!(!dev.auth);
}

#[test]
fn usage_errors_exit_with_2() {
    for line in [
        "cortex",
        "cortex serve",
        "cortex migrate",
        "cortex migrate --config a --database-url b",
        "cortex verify",
        "cortex verify --config a --settle -1",
        "cortex verify --config a --samples 1001",
        "cortex verify --config a --timeout 0",
        "cortex worker",
        "cortex worker --sleep-ms 1 --exec true",
        "cortex worker --sleep-ms 1 --slots 0",
        "cortex dev --replicas 0",
        "cortex jobs submit --model m",
        "cortex jobs submit --model m --input {} --priority 11",
        "cortex jobs watch",
        "cortex workers drain",
        "cortex jobs list --output xml",
        "cortex jobs list --page-size 101",
        "cortex queues depth --priority 0",
        "cortex queues peek --limit 101",
        "cortex cluster add 4",
        "cortex cluster add 0 --peer a:1",
        "cortex cluster adopt",
        "cortex bench",
        "cortex bench sprint",
        "cortex bench drain --jobs 5 --seconds 5",
        "cortex bench submit --batch 1001",
        "cortex bench submit --payload-bytes 1",
    ] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
}

#[test]
fn every_command_of_this_stage_is_understood() {
    for line in [
        "cortex serve --config cortex.yaml",
        "cortex migrate --database-url postgres://db/x",
        "cortex worker --endpoint http://a:1,http://b:2 --name n --models a,b --gpu --memory-gb 1.5 --slots 4 --exec cat",
        "cortex jobs submit --name n --model m --model-version 2 --input {} --priority 10 --max-retries 0 --timeout-seconds 5 --tag a=b --tag c=d --metadata {} --count 3 --wait",
        "cortex jobs get 1 --output json",
        "cortex jobs list --status failed --endpoint http://a:1",
        "cortex jobs watch 1 2",
        "cortex jobs cancel 1",
        "cortex jobs retry 1 --token t",
        "cortex workers list --status idle",
        "cortex queues depth --priority 10",
        "cortex queues peek --limit 100 --priority 1 --output json",
        "cortex queues pause",
        "cortex queues resume --model m",
        "cortex queues clear --priority 3",
        "cortex workers drain 1 2 --output json",
        "cortex cluster status",
        "cortex cluster add 4 --peer d:7070 --http d:8080 --grpc d:9090",
        "cortex cluster remove 4 --output json",
        "cortex cluster transfer --to 2",
        "cortex cluster adopt --config cortex.yaml",
        "cortex cluster adopt --database-url postgres://db/x --cluster-id 01890000-0000-7000-8000-000000000000",
        "cortex bench submit --jobs 10 --in-flight 64 --payload-bytes 200",
        "cortex bench submit-batch --batch 1000 --seconds 5",
        "cortex bench pipeline --workers 2 --slots 100 --endpoint http://a:1 --worker-endpoint http://a:2",
        "cortex bench latency --rate 500",
        "cortex bench soak --seconds 60",
        "cortex bench drain --jobs 50000",
        "cortex bench limit --database-url postgres://db/x",
        "cortex verify --config cortex.yaml",
        "cortex verify --config cortex.yaml --settle 0 --samples 0 --timeout 60 --output json",
        "cortex dev --set a.b=c --set d.e=f --database-url x --redis-url y --auth",
    ] {
        assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
    }
    assert_eq!(parse("cortex --version").unwrap_err().kind(), ErrorKind::DisplayVersion);
}
