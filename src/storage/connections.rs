//! Connections, straight to PostgreSQL or through a pooler.
//!
//! A pooler in transaction mode, such as `PgBouncer`, lends a server to its client for one transaction at a time.
//! What is asked for at the start of a session does not reach the server, and a statement that was prepared there
//! may be unknown to the next one. So behind a pooler every statement runs within a transaction, which sets what
//! holds for it, and statements have no names: one is parsed, bound and forgotten on the same server. That costs
//! round trips, which straight connections do not pay: there, everything here hands on to `sqlx`.
//!
//! All types are executors of `sqlx`, so that a statement need not know which way it goes.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{AssertSqlSafe, Describe, Either, Error, Execute, Executor, PgPool, Postgres, SqlStr};

/// What a statement answers.
type Step = Either<PgQueryResult, PgRow>;

/// How PostgreSQL is reached.
#[derive(Debug, Clone)]
pub(super) enum Way {
    /// A connection is a session.
    Straight,
    /// A connection is a session only as long as a transaction; these settings (`SET LOCAL …`) begin it.
    Pooler(Arc<str>),
}

/// A pool.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    pool: PgPool,
    way: Way,
}

/// A connection within a transaction.
#[derive(Debug)]
pub(super) struct Session<'a> {
    connection: &'a mut PgConnection,
    named: bool,
}

/// A connection for one statement that commits by itself. Behind a pooler a transaction is open that does it.
#[derive(Debug)]
pub(super) struct Single {
    connection: PoolConnection<Postgres>,
    /// A transaction is, or may be, open: nobody else may have the connection.
    open: bool,
}

impl Connections {
    pub(super) fn new(pool: PgPool, way: Way) -> Self {
        Self { pool, way }
    }

    /// The first statements of a transaction: `begin`, and what a session would know by itself.
    pub(super) fn opening(&self, begin: &str) -> String {
        match &self.way {
            Way::Straight => begin.to_owned(),
            Way::Pooler(settings) => format!("{begin}; {settings}"),
        }
    }

    /// How many there may be.
    pub(super) fn capacity(&self) -> usize {
        self.pool.options().get_max_connections() as usize
    }

    /// A connection, to begin a transaction on.
    pub(super) async fn acquire(&self) -> Result<PoolConnection<Postgres>, Error> {
        self.pool.acquire().await
    }

    /// A connection for one statement.
    pub(super) async fn single(&self) -> Result<Single, Error> {
        let connection = self.pool.acquire().await?;
        let mut single = Single { connection, open: false };
        if let Way::Pooler(_) = &self.way {
            single.open = true;
            let begin = self.opening("BEGIN ISOLATION LEVEL READ COMMITTED");
            sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *single.connection).await?;
        }
        Ok(single)
    }

    /// What runs on a connection of this pool.
    pub(super) fn session<'a>(&self, connection: &'a mut PgConnection) -> Session<'a> {
        Session { connection, named: matches!(self.way, Way::Straight) }
    }

    /// Closes all of them.
    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

impl Single {
    /// Runs the statement of an open transaction, and commits.
    async fn run<'q, E: Execute<'q, Postgres> + 'q>(&mut self, query: E) -> Result<Vec<Step>, Error> {
        let connection = &mut *self.connection;
        let steps = connection.fetch_many(Unnamed(query)).try_collect().await;
        let end = if steps.is_ok() { "COMMIT" } else { "ROLLBACK" };
        let ended = sqlx::raw_sql(end).execute(connection).await;
        self.open = ended.is_err();
        let steps = steps?;
        ended?;
        Ok(steps)
    }
}

impl Drop for Single {
    fn drop(&mut self) {
        if self.open {
            self.connection.close_on_drop();
        }
    }
}

/// A statement that is prepared without a name.
struct Unnamed<E>(E);

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Unnamed<E> {
    fn sql(self) -> SqlStr {
        self.0.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        // One that was prepared before may be unknown to this server.
        None
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, sqlx::error::BoxDynError> {
        self.0.take_arguments()
    }

    fn persistent(&self) -> bool {
        false
    }
}

impl<'c> Executor<'c> for &'c Connections {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        match self.way {
            Way::Straight => self.pool.fetch_many(query),
            Way::Pooler(_) => all_at_once(async move { self.single().await?.run(query).await }),
        }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        match self.way {
            Way::Straight => self.pool.fetch_optional(query),
            Way::Pooler(_) => Box::pin(async move { Ok(first_row(self.single().await?.run(query).await?)) }),
        }
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        self.pool.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        self.pool.describe(sql)
    }
}

impl<'c> Executor<'c> for &'c mut Single {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        if self.open { all_at_once(self.run(query)) } else { self.connection.fetch_many(query) }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        if self.open {
            Box::pin(async move { Ok(first_row(self.run(query).await?)) })
        } else {
            self.connection.fetch_optional(query)
        }
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        self.connection.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        self.connection.describe(sql)
    }
}

impl<'c> Executor<'c> for Session<'c> {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        if self.named {
            self.connection.fetch_many(query)
        } else {
            self.connection.fetch_many(Unnamed(query))
        }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        if self.named {
            self.connection.fetch_optional(query)
        } else {
            self.connection.fetch_optional(Unnamed(query))
        }
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        self.connection.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        self.connection.describe(sql)
    }
}

/// A stream of what comes all at once.
fn all_at_once<'e>(
    steps: impl Future<Output = Result<Vec<Step>, Error>> + Send + 'e,
) -> BoxStream<'e, Result<Step, Error>> {
    let each = stream::once(steps).map_ok(|steps| stream::iter(steps.into_iter().map(Ok)));
    each.try_flatten().boxed()
}

fn first_row(steps: Vec<Step>) -> Option<PgRow> {
    steps.into_iter().find_map(Either::right)
}
