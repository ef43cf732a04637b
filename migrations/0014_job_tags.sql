-- Lists by tags, and by a priority together with something else, are found in an index alone like all others. An index on
-- `tags` itself knows no order: each job that goes before the page had to be looked at.

-- A tag's name: short and of one length, whatever its key and value are.
CREATE FUNCTION cortex_tag(key TEXT, value TEXT) RETURNS UUID LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT left(encode(sha256(decode(replace(octet_length(key)::text || ':' || key || value, '\', '\\'), 'escape')),
        'hex'), 32)::uuid
$$;

-- A row for each tag of a job.
CREATE TABLE job_tags (
    tag UUID NOT NULL,
    -- The job's, which never changes.
    submitted_at TIMESTAMPTZ NOT NULL,
    job_id UUID NOT NULL
) WITH (
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 20000,
    autovacuum_analyze_scale_factor = 0.1, autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_vacuum_insert_threshold = 100000);

-- A job's tags never change, so there is nothing to do but where it comes and where it goes. Leaders of this version write
-- the rows of a submission in its own statement, which costs less, and say so in their sessions; for a leader of the version
-- before, and whoever else writes jobs, the database does it.
CREATE FUNCTION cortex_index_tags() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO job_tags (tag, submitted_at, job_id)
        SELECT cortex_tag(key, value), NEW.submitted_at, NEW.id FROM jsonb_each_text(NEW.tags);
    ELSE
        DELETE FROM job_tags t USING jsonb_each_text(OLD.tags)
        WHERE t.tag = cortex_tag(key, value) AND t.submitted_at = OLD.submitted_at AND t.job_id = OLD.id;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER index_tags AFTER INSERT ON jobs FOR EACH ROW 
    WHEN (NEW.tags <> '{}' AND current_setting('cortex.indexes_tags', TRUE) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION cortex_index_tags();
CREATE TRIGGER forget_tags AFTER DELETE ON jobs FOR EACH ROW WHEN (OLD.tags <> '{}')
    EXECUTE FUNCTION cortex_index_tags();

-- Nobody may submit a job between these two, and creating a trigger has seen to that.
INSERT INTO job_tags (tag, submitted_at, job_id)
SELECT cortex_tag(key, value), submitted_at, id
FROM (SELECT id, submitted_at, tags FROM jobs WHERE tags <> '{}' ORDER BY submitted_at) tagged, jsonb_each_text(tags);
CREATE INDEX idx_job_tags ON job_tags (tag, submitted_at, job_id);

DROP INDEX idx_jobs_tags, idx_jobs_priority;
CREATE INDEX idx_jobs_priority ON jobs (priority, submitted_at, id) INCLUDE (unsuccessful, model_name, created_by)
    WHERE priority <> 5;
