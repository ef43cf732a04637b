-- What operators decide about workers, and what is known of jobs that take their workers down.

ALTER TABLE workers
    -- Keeps what it runs and gets nothing new, until it registers again.
    ADD COLUMN draining BOOLEAN NOT NULL DEFAULT FALSE,
    -- Taken out of service: nothing that it says counts until it registers again.
    ADD COLUMN removed_at TIMESTAMPTZ,
    -- As registered. `metadata` is this with what its heartbeats report laid over it.
    ADD COLUMN declared_metadata JSONB NOT NULL DEFAULT '{}',
    ADD CONSTRAINT workers_removed_is_offline CHECK (removed_at IS NULL OR status = 'offline');

-- Workers that were lost while they ran the job. NULL, and no byte of the row, for nearly all jobs.
ALTER TABLE jobs ADD COLUMN lost_workers UUID[];
