-- Live leases get a table of their own, from which a lease goes when it ends. With the index of live
-- executions, whose predicate looks at their state, no end of an attempt could be written in place (HOT): it cost
-- new entries in all indexes, and vacuum had to clear the old ones beside the load.
CREATE TABLE leases (
    -- A job never has two live leases.
    job_id UUID PRIMARY KEY,
    -- The lease token, which is the execution's id.
    id UUID NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 100000);

INSERT INTO leases (job_id, id) SELECT job_id, id FROM executions WHERE status IN ('started', 'running');

DROP INDEX idx_executions_live;
-- Room for the version that says how the attempt ended.
ALTER TABLE executions SET (fillfactor = 50);
