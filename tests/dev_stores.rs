//! The private PostgreSQL and Redis of `cortex::dev`, for real.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cortex::dev::{PortBlock, Postgres, PostgresOptions, Redis, RedisOptions, Signal};
use sqlx::{Connection, PgConnection};
use support::{Scratch, Stores};

fn postgres_in(folder: &Path, port: u16) -> PostgresOptions {
    PostgresOptions { data_dir: folder.join("pg"), log: folder.join("pg.log"), port, settings: Vec::new() }
}

fn redis_in(folder: &Path, port: u16) -> RedisOptions {
    RedisOptions { data_dir: folder.join("redis"), log: folder.join("redis.log"), port }
}

async fn execute(url: &str, statement: &'static str) -> u64 {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query(statement).execute(&mut connection).await.unwrap().rows_affected()
}

async fn ask<T: redis::FromRedisValue>(url: &str, command: &[&str]) -> redis::RedisResult<T> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let mut asked = redis::cmd(command[0]);
    asked.arg(&command[1..]);
    asked.query_async(&mut connection).await
}

/// Waits until no process has this id; zombies count as gone.
async fn wait_until_gone(pid: u32) {
    let is_there = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
    };
    let gone = async {
        while is_there() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the process is still there");
}

#[tokio::test]
async fn postgres_keeps_its_data_through_a_clean_stop_and_through_a_kill() {
    let scratch = Scratch::new();
    let ports = PortBlock::reserve(1).unwrap();
    let mut postgres = Postgres::start(postgres_in(scratch.path(), ports.first())).await.unwrap();
    assert!(!postgres.is_elsewhere());
    execute(&postgres.url(), "CREATE TABLE kept (id int)").await;
    postgres.stop().await;
    postgres.restart().await.unwrap();
    execute(&postgres.url(), "INSERT INTO kept VALUES (1)").await;

    assert!(postgres.signal(Signal::SIGKILL));
    wait_until_gone(postgres.pid()).await;
    postgres.restart().await.unwrap();
    assert_eq!(execute(&postgres.url(), "SELECT * FROM kept").await, 1);
    postgres.stop().await;
}

#[tokio::test]
async fn postgres_is_durable_and_listens_on_loopback_only() {
    let scratch = Scratch::new();
    let ports = PortBlock::reserve(1).unwrap();
    let postgres = Postgres::start(postgres_in(scratch.path(), ports.first())).await.unwrap();
    let mut connection = PgConnection::connect(&postgres.url()).await.unwrap();
    for (setting, expected) in [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("max_connections", "200"),
        ("listen_addresses", "127.0.0.1"),
        ("server_encoding", "UTF8"),
    ] {
        let value: String = sqlx::query_scalar("SELECT current_setting($1)")
            .bind(setting)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(value, expected, "{setting}");
    }
}

#[tokio::test]
async fn a_stale_pid_file_does_not_keep_postgres_from_starting() {
    let scratch = Scratch::new();
    let ports = PortBlock::reserve(1).unwrap();
    let options = || postgres_in(scratch.path(), ports.first());
    let postgres = Postgres::start(options()).await.unwrap();
    let pid_file = postgres.home().join("data/postmaster.pid");
    postgres.stop().await;
    // The id now belongs to an unrelated process of the same account, as after a restart of the machine.
    let owner = fs::metadata(postgres.home()).unwrap();
    let mut bystander = Bystander(sleep_as(&owner));
    fs::write(&pid_file, format!("{}\n{}\n", bystander.0.id(), pid_file.display())).unwrap();
    drop(postgres);

    let postgres = Postgres::start(options()).await.unwrap();
    execute(&postgres.url(), "SELECT 1").await;
    assert!(bystander.0.try_wait().unwrap().is_none(), "a process that is not PostgreSQL was ended");
}

/// Ends with the test, also when that fails.
struct Bystander(std::process::Child);

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sleep_as(owner: &fs::Metadata) -> std::process::Child {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::process::CommandExt;
    Command::new("sleep").arg("600").uid(owner.uid()).gid(owner.gid()).current_dir("/").spawn().unwrap()
}

#[tokio::test]
async fn a_postgres_that_was_left_behind_is_ended_before_its_data_is_used() {
    let scratch = Scratch::new();
    let ports = PortBlock::reserve(2).unwrap();
    let left_behind = Postgres::start(postgres_in(scratch.path(), ports.first())).await.unwrap();
    execute(&left_behind.url(), "CREATE TABLE kept (id int)").await;
    let next = Postgres::start(postgres_in(scratch.path(), ports.first() + 1)).await.unwrap();
    wait_until_gone(left_behind.pid()).await;
    assert_eq!(execute(&next.url(), "SELECT * FROM kept").await, 0);
}

#[tokio::test]
async fn a_folder_that_the_account_cannot_reach_is_replaced_by_one_that_it_can() {
    let scratch = Scratch::new();
    let private = scratch.path().join("private");
    fs::create_dir(&private).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    let ports = PortBlock::reserve(1).unwrap();
    let mut postgres = Postgres::start(postgres_in(&private, ports.first())).await.unwrap();
    assert_eq!(postgres.is_elsewhere(), nix::unistd::Uid::effective().is_root());
    execute(&postgres.url(), "CREATE TABLE kept (id int)").await;
    postgres.stop().await;
    postgres.restart().await.unwrap();
    assert_eq!(execute(&postgres.url(), "SELECT * FROM kept").await, 0);
    postgres.stop().await;
    if postgres.is_elsewhere() {
        fs::remove_dir_all(postgres.home()).unwrap();
    }
}

#[tokio::test]
async fn a_store_that_cannot_take_its_port_says_so_with_its_log() {
    let scratch = Scratch::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = Postgres::start(postgres_in(scratch.path(), port)).await.err().unwrap().to_string();
    assert!(error.contains("PostgreSQL ended") && error.contains("Address already in use"), "{error}");
    let error = Redis::start(redis_in(scratch.path(), port)).await.err().unwrap().to_string();
    assert!(error.contains("Redis ended") && error.contains("Address already in use"), "{error}");
}

#[tokio::test]
async fn redis_keeps_its_data_through_a_clean_stop_and_ends_with_its_handle() {
    let scratch = Scratch::new();
    let ports = PortBlock::reserve(1).unwrap();
    let mut redis = Redis::start(redis_in(scratch.path(), ports.first())).await.unwrap();
    ask::<()>(&redis.url(), &["SET", "kept", "1"]).await.unwrap();
    redis.stop().await;
    assert!(ask::<()>(&redis.url(), &["PING"]).await.is_err());
    redis.restart().await.unwrap();
    assert_eq!(ask::<String>(&redis.url(), &["GET", "kept"]).await.unwrap(), "1");
    let (_, persistence) =
        ask::<(String, String)>(&redis.url(), &["CONFIG", "GET", "appendfsync"]).await.unwrap();
    assert_eq!(persistence, "everysec");

    let pid = redis.pid();
    drop(redis);
    wait_until_gone(pid).await;
}

#[tokio::test]
async fn fresh_stores_share_nothing() {
    let (one, other) = (Stores::fresh().await, Stores::fresh().await);
    assert_ne!(one.queue_prefix, other.queue_prefix);
    execute(&one.database_url, "CREATE TABLE mine (id int)").await;
    execute(&other.database_url, "CREATE TABLE mine (id int)").await;
    one.pool(2).await.close().await;
}

/// Runs this test binary again as a process that starts stores and then dies by `how`.
async fn leftovers_after(how: &str) {
    let scratch = Scratch::new();
    let report = scratch.path().join("report");
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["victim_of_another_test", "--exact", "--nocapture", "--include-ignored"])
        .env("CORTEX_TEST_REPORT", &report)
        .env("CORTEX_TEST_END", how)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let written = async {
        while !report.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), written).await.unwrap();
    if how == "kill" {
        victim.kill().unwrap();
    }
    victim.wait().unwrap();
    let report = fs::read_to_string(&report).unwrap();
    let mut lines = report.lines();
    let folder = lines.next().unwrap();
    for pid in lines {
        wait_until_gone(pid.parse().unwrap()).await;
    }
    let removed = async {
        while Path::new(folder).exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), removed).await.expect("the folder is still there");
}

#[tokio::test]
async fn stores_and_their_folder_are_gone_after_the_test_process_ends() {
    leftovers_after("return").await;
}

#[tokio::test]
async fn stores_and_their_folder_are_gone_after_the_test_process_panics() {
    leftovers_after("panic").await;
}

#[tokio::test]
async fn stores_and_their_folder_are_gone_after_the_test_process_is_killed() {
    leftovers_after("kill").await;
}

#[tokio::test]
#[ignore = "run by other tests, as a process of its own"]
async fn victim_of_another_test() {
    let report = std::env::var("CORTEX_TEST_REPORT").unwrap();
    let stores = Stores::fresh().await;
    let mut connection = PgConnection::connect(&stores.database_url).await.unwrap();
    let data: String = sqlx::query_scalar("SHOW data_directory").fetch_one(&mut connection).await.unwrap();
    let folder = Path::new(&data).parent().unwrap().parent().unwrap();
    let postmaster = fs::read_to_string(Path::new(&data).join("postmaster.pid")).unwrap();
    let redis = fs::read_to_string(folder.join("redis/redis.pid")).unwrap();
    let lines = [folder.to_str().unwrap(), postmaster.lines().next().unwrap(), redis.trim()].join("\n");
    fs::write(format!("{report}.new"), lines).unwrap();
    fs::rename(format!("{report}.new"), &report).unwrap();
    match std::env::var("CORTEX_TEST_END").unwrap().as_str() {
        "kill" => tokio::time::sleep(Duration::from_secs(600)).await,
        "panic" => panic!("as asked"),
        _ => {}
    }
}
