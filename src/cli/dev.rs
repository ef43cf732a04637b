//! `cortex dev`.

use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use super::args::DevArgs;
use super::output::{CommandError, finish, print_line};
use crate::config::Secret;
use crate::dev::{DevCluster, DevClusterBuilder, DevError, DevEvent};
use crate::security::Role;

/// Runs a cluster until Ctrl-C or SIGTERM.
pub async fn run(args: DevArgs) -> ExitCode {
    finish(serve(args).await)
}

async fn serve(args: DevArgs) -> Result<(), CommandError> {
    let mut signals = Signals::new()?;
    let started = Instant::now();
    let cluster = tokio::select! {
        cluster = builder(args).start() => cluster.map_err(refusal)?,
        () = signals.next() => return print_line("stopped"),
    };
    // Output that nobody reads is no reason to take the cluster down.
    let _ = print_line(&welcome(&cluster, started.elapsed().as_secs_f64()));
    signals.next().await;
    let _ = print_line("stopping (once more to kill)");
    tokio::select! {
        () = cluster.stop() => {}
        () = signals.next() => return Err(CommandError::Failed("killed before everything had ended".to_owned())),
    }
    let _ = print_line("stopped");
    Ok(())
}

fn builder(args: DevArgs) -> DevClusterBuilder {
    let mut builder = DevCluster::builder(args.data_dir)
        .replicas(args.replicas)
        .workers(args.workers)
        .ports(args.http_port, args.grpc_port, args.peer_port)
        .database_url(args.database_url)
        .redis_url(args.redis_url)
        .require_auth(args.auth)
        .token(args.token)
        .on_event(report);
    for text in args.set {
        builder = builder.set(text);
    }
    builder
}

fn refusal(error: DevError) -> CommandError {
    match error {
        DevError::Options(_) | DevError::Config(_) => CommandError::Usage(error.to_string()),
        error => CommandError::Failed(error.to_string()),
    }
}

fn report(event: DevEvent) {
    let text = match event {
        DevEvent::Progress(text) => text,
        DevEvent::Notice(text) => format!("note: {text}"),
        DevEvent::Exited { name, pid, status, log } => {
            let again = match name.strip_prefix("replica ") {
                Some(id) => {
                    let config = log.with_file_name(format!("replica-{id}.yaml"));
                    format!("; start it again with: cortex serve --config {}", config.display())
                }
                None => String::new(),
            };
            format!("{name} (process {pid}) has ended: {status}; its log is {}{again}", log.display())
        }
    };
    let _ = print_line(&text);
}

fn welcome(cluster: &DevCluster, seconds: f64) -> String {
    let mut lines = vec![format!("\nCORTEX is ready after {seconds:.1} s.\n")];
    for index in 0..cluster.size() {
        let pid = cluster.pid(index).map_or_else(|| "ended".to_owned(), |pid| format!("process {pid}"));
        let (http, grpc, peer) = (cluster.http(index), cluster.grpc(index), cluster.peer(index));
        lines.push(format!("  replica {:<3} http://{http}  gRPC {grpc}  peer {peer}  {pid}", index + 1));
    }
    for (name, pid) in cluster.worker_pids() {
        lines.push(format!("  worker {name:<8} process {pid}"));
    }
    let data_dir = cluster.data_dir().display();
    lines.push(format!("  PostgreSQL  {}", Secret::new(cluster.database_url())));
    lines.push(format!("  Redis       {}", Secret::new(cluster.redis_url())));
    lines.push(format!("  data, logs  {data_dir}"));
    if let Some(tokens) = cluster.tokens() {
        let roles = Role::ALL.map(Role::as_str).join(",");
        lines.push(format!("  tokens      {}/{{{roles}}}.token, good for 30 days", tokens.display()));
    }
    lines.push(String::new());
    lines.push("Try, in another terminal:\n".to_owned());
    lines.push(format!("  export CORTEX_ENDPOINT={}", cluster.http_endpoints()));
    if let Some(tokens) = cluster.tokens() {
        lines.push(format!("  export CORTEX_TOKEN=$(cat {}/admin.token)", tokens.display()));
    }
    lines.push(
        "  cortex jobs submit --model demo --input '{\"hello\": \"world\"}' --count 20 --wait".to_owned(),
    );
    lines.push("  cortex jobs list".to_owned());
    lines.push("  cortex cluster status".to_owned());
    lines.push("  kill -9 <process of the leader>    # another replica takes over".to_owned());
    lines.push("\nCtrl-C stops everything. The data stays for the next run.".to_owned());
    lines.join("\n")
}

/// The signals that ask this process to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, CommandError> {
        let listen = |kind| {
            signal(kind).map_err(|error| CommandError::Failed(format!("cannot listen for signals: {error}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
