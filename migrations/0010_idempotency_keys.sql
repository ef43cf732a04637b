-- Which jobs a client's Idempotency-Key stands for. A row comes before its jobs and names their ids, so that whoever
-- sends the key again, to whichever leader, finds or finishes what the first request began. Submissions without a
-- key never look here.

CREATE TABLE idempotency_keys (
    -- Whose key it is; empty for callers without a name.
    scope TEXT NOT NULL,
    key TEXT NOT NULL,
    -- SHA-256 of what was submitted.
    fingerprint BYTEA NOT NULL,
    job_ids UUID[] NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (scope, key)
);

-- Forgetting the oldest, and keeping the jobs of those that count.
CREATE INDEX idx_idempotency_keys_created ON idempotency_keys (created_at);
CREATE INDEX idx_idempotency_keys_jobs ON idempotency_keys USING gin (job_ids);
