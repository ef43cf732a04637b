//! The group that all tests of this binary share: three replicas, one PostgreSQL, one Redis.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use cortex::dev::{DevCluster, Janitor};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::OnceCell;

use crate::reply::Reply;
use crate::support::{Scratch, Stores, eventually};

/// Number of replicas.
pub const REPLICAS: usize = 3;

/// Failures in a row after which a worker gets nothing new for a second; more than any other test has.
pub const UNHEALTHY_AFTER: u32 = 25;

/// A request that a test made: method, path, status of the answer.
pub type Made = (Method, String, u16);

static MADE: Mutex<Vec<Made>> = Mutex::new(Vec::new());
static ENDED: AtomicUsize = AtomicUsize::new(0);

struct Group {
    http: Vec<SocketAddr>,
    grpc: Vec<SocketAddr>,
    logs: Vec<PathBuf>,
    stores: Stores,
    // What the process holds until its end, when the kernel ends the children and the janitors clean up.
    _cluster: DevCluster,
    _folder: Scratch,
    _janitor: Janitor,
}

async fn group() -> &'static Group {
    static GROUP: OnceCell<Group> = OnceCell::const_new();
    GROUP.get_or_init(start).await
}

async fn start() -> Group {
    let stores = Stores::fresh().await;
    let folder = Scratch::new();
    let cluster = DevCluster::builder(folder.path().join("data"))
        .binary(env!("CARGO_BIN_EXE_cortex"))
        .replicas(3)
        .workers(0)
        .database_url(Some(stores.database_url.clone()))
        .redis_url(Some(stores.redis_url.clone()))
        .set(format!("queue.queue_prefix={:?}", stores.queue_prefix))
        .set(format!("scheduler.unhealthy_after={UNHEALTHY_AFTER}"))
        .set("scheduler.unhealthy_pause=1")
        // These tests are not about failover, and the machine may be busy.
        .set("cluster.heartbeat_ms=100")
        .set("cluster.election_timeout_ms=[5000, 10000]")
        .set("cluster.forward_timeout_ms=60000")
        .start()
        .await
        .unwrap();
    let manifest = std::fs::read(cluster.data_dir().join("cluster.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let pid = |replica: &Value| u32::try_from(replica["pid"].as_u64().unwrap()).unwrap();
    let pids: Vec<u32> = manifest["replicas"].as_array().unwrap().iter().map(pid).collect();
    Group {
        http: (0..REPLICAS).map(|at| cluster.http(at)).collect(),
        grpc: (0..REPLICAS).map(|at| cluster.grpc(at)).collect(),
        logs: (0..REPLICAS).map(|at| cluster.log(at).to_owned()).collect(),
        stores,
        _janitor: Janitor::watch(folder.path(), &pids).unwrap(),
        _folder: folder,
        _cluster: cluster,
    }
}

/// One test's view of the group.
pub struct Api {
    group: &'static Group,
    /// Model name, submitter and hostname of all that this test makes, and of nothing else.
    pub name: String,
    /// For reading what really happened.
    pub database: PgPool,
    pub http: reqwest::Client,
    next_port: AtomicI32,
}

impl Api {
    /// A view for the test that is called `name`; no other test has that name.
    pub async fn of(name: &str) -> Self {
        let group = group().await;
        let database = PgPoolOptions::new().max_connections(2).connect_lazy(&group.stores.database_url);
        Self {
            group,
            name: format!("test-{name}"),
            database: database.unwrap(),
            http: reqwest::Client::new(),
            next_port: AtomicI32::new(1),
        }
    }

    /// Sends a request to a replica. An error answer must be a well-formed problem, and never 5xx.
    pub async fn send(&self, replica: usize, method: Method, path: &str, body: Option<&Value>) -> Reply {
        let mut request = self.http.request(method.clone(), self.url(replica, path));
        if let Some(body) = body {
            request = request.json(body);
        }
        let reply = Reply::read(request.send().await.unwrap()).await;
        MADE.lock().unwrap().push((method, path.to_owned(), reply.status));
        reply
    }

    pub async fn get(&self, replica: usize, path: &str) -> Reply {
        self.send(replica, Method::GET, path, None).await
    }

    pub async fn post(&self, replica: usize, path: &str, body: &Value) -> Reply {
        self.send(replica, Method::POST, path, Some(body)).await
    }

    /// Waits until a replica says at `path` that all its parts work; answers what it says.
    pub async fn healthy(&self, replica: usize, path: &str) -> Value {
        let mut health = Value::Null;
        eventually(&format!("{path} of replica {replica} is well"), async || {
            let answer = self.http.get(self.url(replica, path)).send().await.unwrap();
            let status = answer.status().as_u16();
            MADE.lock().unwrap().push((Method::GET, path.to_owned(), status));
            health = answer.json().await.unwrap();
            status == 200
        })
        .await;
        health
    }

    /// Posts under an `Idempotency-Key`.
    pub async fn post_once(&self, replica: usize, path: &str, body: &Value, key: &str) -> Reply {
        let request = self.http.post(self.url(replica, path)).header("Idempotency-Key", key).json(body);
        let reply = Reply::read(request.send().await.unwrap()).await;
        MADE.lock().unwrap().push((Method::POST, path.to_owned(), reply.status));
        reply
    }

    /// Opens a stream of events, from the beginning or after one.
    pub async fn open(&self, replica: usize, path: &str, after: Option<&str>) -> reqwest::Response {
        let mut request = self.http.get(self.url(replica, path));
        if let Some(after) = after {
            request = request.header("Last-Event-ID", after);
        }
        let response = request.send().await.unwrap();
        MADE.lock().unwrap().push((Method::GET, path.to_owned(), response.status().as_u16()));
        response
    }

    pub async fn patch(&self, replica: usize, id: &str, body: &Value) -> Reply {
        self.send(replica, Method::PATCH, &format!("/api/v1/jobs/{id}"), Some(body)).await
    }

    pub async fn cancel(&self, replica: usize, id: &str) -> Reply {
        self.send(replica, Method::DELETE, &format!("/api/v1/jobs/{id}"), None).await
    }

    pub async fn retry(&self, replica: usize, id: &str) -> Reply {
        self.send(replica, Method::POST, &format!("/api/v1/jobs/{id}/retry"), None).await
    }

    pub async fn remove_worker(&self, replica: usize, id: &str) {
        self.send(replica, Method::DELETE, &format!("/api/v1/workers/{id}"), None).await.expect(204);
    }

    pub async fn job(&self, replica: usize, id: &str) -> Value {
        self.get(replica, &format!("/api/v1/jobs/{id}")).await.expect(200)
    }

    pub async fn executions(&self, replica: usize, id: &str) -> Vec<Value> {
        let answer = self.get(replica, &format!("/api/v1/jobs/{id}/executions")).await.expect(200);
        answer.as_array().unwrap().clone()
    }

    /// A valid submission of this test, with `fields` in place of its own.
    pub fn draft(&self, fields: &Value) -> Value {
        let mut draft = json!({"name": "job", "model_name": self.name, "model_version": "v1.0.0",
            "input_data": {"prompt": "test"}, "created_by": self.name});
        for (field, value) in fields.as_object().unwrap() {
            draft[field] = value.clone();
        }
        draft
    }

    /// Submits a job and answers its id.
    pub async fn submit(&self, replica: usize, fields: &Value) -> String {
        let job = self.post(replica, "/api/v1/jobs", &self.draft(fields)).await.expect(201);
        job["id"].as_str().unwrap().to_owned()
    }

    /// All columns of a job and of its executions, as PostgreSQL has them.
    pub async fn rows(&self, job: &str) -> Value {
        sqlx::query_scalar(
            "SELECT jsonb_build_object('job', to_jsonb(j), 'executions',
                 (SELECT coalesce(jsonb_agg(to_jsonb(e) ORDER BY e.created_at, e.id), '[]')
                  FROM executions e WHERE e.job_id = j.id))
             FROM jobs j WHERE j.id = $1::uuid",
        )
        .bind(job)
        .fetch_one(&self.database)
        .await
        .unwrap()
    }

    /// Waits until the job is in `status`.
    pub async fn reaches(&self, job: &str, status: &str) -> Value {
        eventually(&format!("job {job} is {status}"), async || {
            self.rows(job).await["job"]["status"] == status
        })
        .await;
        self.rows(job).await
    }

    /// URL of a path at a replica.
    pub fn url(&self, replica: usize, path: &str) -> String {
        format!("http://{}{path}", self.group.http[replica])
    }

    /// URL of a replica's listener for workers.
    pub fn grpc(&self, replica: usize) -> String {
        format!("http://{}", self.group.grpc[replica])
    }

    /// A replica that does not lead.
    pub async fn follower(&self) -> usize {
        let cluster = self.get(0, "/api/v1/cluster").await.expect(200);
        (0..REPLICAS).find(|at| cluster["leader"] != at + 1).unwrap()
    }

    /// Whether this replica leads.
    pub async fn leads(&self, replica: usize) -> bool {
        self.get(replica, "/api/v1/cluster").await.expect(200)["leader"] == replica + 1
    }

    /// A port that no other worker of this test has.
    pub fn new_port(&self) -> i32 {
        self.next_port.fetch_add(1, Ordering::Relaxed)
    }

    /// What the replicas have logged.
    pub fn logs(&self) -> Vec<String> {
        let read = |log| String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned();
        self.group.logs.iter().map(read).collect()
    }

    /// Ids of this test's jobs in the ready queue, claimed ones included.
    pub async fn ready(&self) -> Vec<String> {
        let client = redis::Client::open(self.group.stores.redis_url.as_str()).unwrap();
        let mut redis = client.get_multiplexed_async_connection().await.unwrap();
        let prefix = &self.group.stores.queue_prefix;
        let prefix = format!("{prefix}:{{{prefix}}}");
        let mut command = redis::cmd("KEYS");
        let keys: Vec<String> =
            command.arg(format!("{prefix}:shape:*:{}*", self.name)).query_async(&mut redis).await.unwrap();
        let mut ready = Vec::new();
        for key in keys {
            let members: Vec<String> =
                redis::cmd("ZRANGE").arg(key).arg(0).arg(-1).query_async(&mut redis).await.unwrap();
            ready.extend(members);
        }
        let claims: Vec<String> =
            redis::cmd("HKEYS").arg(format!("{prefix}:claims")).query_async(&mut redis).await.unwrap();
        let mine: Vec<String> =
            sqlx::query_scalar("SELECT id::text FROM jobs WHERE created_by = $1 AND id::text = ANY($2)")
                .bind(&self.name)
                .bind(claims)
                .fetch_all(&self.database)
                .await
                .unwrap();
        ready.extend(mine);
        ready
    }

    /// Calls off what this test has left, and sees that nothing of it stays anywhere.
    pub async fn leave(self) {
        let left: Vec<String> = sqlx::query_scalar(
            "SELECT id::text FROM jobs
             WHERE created_by = $1 AND status IN ('pending', 'queued', 'assigned', 'running')",
        )
        .bind(&self.name)
        .fetch_all(&self.database)
        .await
        .unwrap();
        for id in left {
            self.cancel(0, &id).await.expect(204);
        }
        eventually("the ready queue holds none of the test's jobs", async || self.ready().await.is_empty())
            .await;
        eventually("the test's workers hold no job", async || {
            let held = "SELECT count(*) FROM workers WHERE hostname = $1 AND current_job_count > 0";
            sqlx::query_scalar::<_, i64>(held).bind(&self.name).fetch_one(&self.database).await.unwrap() == 0
        })
        .await;
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (replica, log) in self.logs().iter().enumerate() {
                let lines: Vec<_> = log.lines().collect();
                let end = lines[lines.len().saturating_sub(20)..].join("\n");
                eprintln!("the end of the log of replica {}:\n{end}", replica + 1);
            }
        }
        ENDED.fetch_add(1, Ordering::Relaxed);
    }
}

/// How many tests have ended.
pub fn ended() -> usize {
    ENDED.load(Ordering::Relaxed)
}

/// Takes a look at every request that a test made so far.
pub fn made() -> Vec<Made> {
    MADE.lock().unwrap().clone()
}
