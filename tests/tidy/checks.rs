//! docs/VERIFY.md, made from the catalog of checks.

use std::fmt::Write;

use cortex::verify::{CHECKS, Check};

const BEFORE: &str = r#"# `cortex verify`

Looks for what is off in a live installation, and changes nothing. Made from the sources: a test compares, and writes it
anew with `CORTEX_WRITE_DOCS=1 cargo test --test tidy`.

```console
$ cortex verify --config FILE
```

`--config` is the file of any replica; it names PostgreSQL, Redis and the prefix of the queue. `--output json` prints the
report for programs (`cortex::verify::Report`), `--samples` says how much of each finding is shown (20; all is counted),
`--timeout` how many seconds a statement may take (300).

| exit status | |
| --- | --- |
| 0 | all was looked at, and nothing is off |
| 1 | something is off; or the command could not begin, as with a configuration that cannot be read: then standard output is empty |
| 2 | wrong usage |
| 3 | some checks could not be made, as while a store is away; of the others nothing is off |

**When.** After an incident, after restoring a backup, before and after an upgrade. It may run at any time and anywhere that reaches
both stores: PostgreSQL is read in read-only snapshots, by one connection at a time, with no lock but that of any read, so a standby
(`CORTEX__DATABASE__URL`) will do as long as it lags behind by less than `--settle`. Redis is read in steps of 1,000; nothing is
written to it.

**What it costs.** Jobs and executions are read a few times from end to end, and never each row against all others: 26 s for 1,000,000
finished jobs with their executions (1.8 GB), of which half went into the attempts' sequence, on two cores that were busy otherwise.
A snapshot lasts as long as its statement, and vacuum and migrations wait for it like for any long read; `--timeout` bounds that. So
look before an upgrade or after it, and not while its first replica starts: what waits behind a migration waits for both.

**What counts.** What one snapshot decides counts at once. What a healthy cluster has for a moment, and what the stores say of each
other, which are read one after the other, is looked at twice, `--settle` seconds (15) apart, and counts only if the same is off
in the same way both times. Nobody waits if the first look finds nothing of that kind. While the replicas are stopped, what their loops
would repair is reported: start them, and look again.

**How bad.** `harm`: work was lost or done twice, or will be. `drift`: work waits or numbers are wrong; a loop of the leader, or the
step that is named, sets it right. `notice`: the stores alone cannot tell whether anything is wrong; it does not count for the exit status.

"#;

const AFTER: &str = r#"
## Repairs

**The queue's keys in Redis** hold nothing that PostgreSQL does not know. To have the leader rebuild them:

```console
$ redis-cli -u URL --scan --pattern 'PREFIX:*' | xargs redis-cli -u URL del
```

**The counters** are counted anew by this, while no leader can write. Writers wait meanwhile (it reads all jobs once), so choose a quiet
hour, or stop the replicas:

```sql
BEGIN;
SELECT pg_advisory_xact_lock(cortex_fence_key());
UPDATE job_counters SET pending = 0, queued = 0, assigned = 0, running = 0, completed = 0, failed = 0, cancelled = 0,
    timeout = 0;
UPDATE job_counters c SET pending = j.pending, queued = j.queued, assigned = j.assigned, running = j.running,
    completed = j.completed, failed = j.failed, cancelled = j.cancelled, timeout = j.timeout
FROM (SELECT count(*) FILTER (WHERE status = 'pending') AS pending, count(*) FILTER (WHERE status = 'queued') AS queued,
          count(*) FILTER (WHERE status = 'assigned') AS assigned, count(*) FILTER (WHERE status = 'running') AS running,
          count(*) FILTER (WHERE status = 'completed') AS completed, count(*) FILTER (WHERE status = 'failed') AS failed,
          count(*) FILTER (WHERE status = 'cancelled') AS cancelled, count(*) FILTER (WHERE status = 'timeout') AS timeout
      FROM jobs) j
WHERE c.slot = 0;
COMMIT;
```

## What it cannot see

Whether a worker really does what its lease says, what clients were answered, who leads in Raft (`cortex cluster status`), and whether a
job came before its time: that time is gone from the row once the job is queued.
"#;

/// The whole page.
pub fn page() -> String {
    let mut text = String::from(BEFORE);
    text += "## Checks\n\n";
    for Check { name, severity, means, repair, .. } in &CHECKS {
        let looks =
            if cortex::verify::check(name).is_some_and(Check::settles) { "two looks" } else { "one look" };
        let _ = write!(
            text,
            "### `{name}`\n\n{}, {looks}. Off: {means}.\n\nRepair: {repair}.\n\n",
            severity.as_str()
        );
    }
    text.truncate(text.trim_end().len());
    text + "\n" + AFTER
}
