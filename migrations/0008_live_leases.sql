-- Live leases get a table of their own, from which a lease goes when it ends. With the index of live
-- executions, whose predicate looks at their state, no end of an attempt could be written in place (HOT): it cost
-- new entries in all indexes, and vacuum had to clear the old ones beside the load.

-- No leader writes meanwhile. One of an older version that goes on leading does not keep the table; whoever takes over
-- sets it right (`Database::take_over_leases`).
SELECT pg_advisory_xact_lock(cortex_fence_key());

CREATE TABLE leases (
    -- A job never has two live leases.
    job_id UUID PRIMARY KEY,
    -- The lease token, which is the execution's id.
    id UUID NOT NULL
-- Cutting off its empty end would stop all who grant or end leases.
) WITH (vacuum_truncate = off);

INSERT INTO leases (job_id, id) SELECT id, lease_id FROM jobs WHERE lease_id IS NOT NULL;

DROP INDEX idx_executions_live;
-- Room for the version that says how the attempt ended.
ALTER TABLE executions SET (fillfactor = 50);
