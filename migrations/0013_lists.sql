-- Lists stay fast at a million jobs: a page deep in a list is found in an index alone, without a look at the jobs
-- before it, and so are two filters at once. A status cannot be in an index, or no end of a job could be written in
-- place (HOT); this column says the same of those few that ended badly, and never changes on the way to completion.
-- Empty, which is one byte, for all others.
ALTER TABLE jobs ADD COLUMN unsuccessful TEXT NOT NULL GENERATED ALWAYS AS (
    CASE WHEN status IN ('failed', 'cancelled', 'timeout') THEN status ELSE '' END) STORED;

DROP INDEX idx_jobs_submitted, idx_jobs_model, idx_jobs_tags;

CREATE INDEX idx_jobs_submitted ON jobs (submitted_at, id) INCLUDE (priority, unsuccessful);
CREATE INDEX idx_jobs_model ON jobs (model_name, submitted_at, id) INCLUDE (priority, unsuccessful, created_by);
-- What most jobs have, or have not, costs nothing here: the default priority is found by the time of submission.
CREATE INDEX idx_jobs_priority ON jobs (priority, submitted_at, id) INCLUDE (unsuccessful) WHERE priority <> 5;
CREATE INDEX idx_jobs_creator ON jobs (created_by, submitted_at, id) INCLUDE (priority, unsuccessful)
    WHERE created_by IS NOT NULL;
CREATE INDEX idx_jobs_unsuccessful ON jobs (unsuccessful, submitted_at, id)
    INCLUDE (priority, model_name, created_by) WHERE unsuccessful <> '';
-- One entry for each tag instead of one for its key and one for its value.
CREATE INDEX idx_jobs_tags ON jobs USING gin (tags jsonb_path_ops) WHERE tags <> '{}';
