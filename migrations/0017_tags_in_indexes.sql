-- Lists by a tag and something else are found in one index, too. To merge two lists along the time, all of both had to be
-- walked; now the entries of a model, creator, priority or end say which tags their jobs have.

-- Names of a job's tags in eight bytes each; null where there are none. A submission has at most 64 tags; of older jobs
-- with more, lists by a frequent tag and something else find the first 64.
CREATE FUNCTION cortex_short_tags(tags JSONB) RETURNS BIGINT[] LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    RETURN (SELECT array_agg(('x' || left(replace(cortex_tag(key, value)::text, '-', ''), 16))::bit(64)::bigint)
        FROM (SELECT key, value FROM jsonb_each_text(tags) LIMIT 64) few);
END
$$;

-- Before the table is written anew, so that they are made once.
DROP INDEX idx_jobs_model, idx_jobs_priority, idx_jobs_creator, idx_jobs_unsuccessful;

-- Made by the database once, for the rows that are there. Leaders of this version write it, which costs less.
ALTER TABLE jobs ADD COLUMN short_tags BIGINT[] GENERATED ALWAYS AS (
    CASE WHEN tags <> '{}' THEN cortex_short_tags(tags) END) STORED;
ALTER TABLE jobs ALTER COLUMN short_tags DROP EXPRESSION;

-- For a leader of the version before, and whoever else writes jobs.
CREATE FUNCTION cortex_name_tags() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    NEW.short_tags := cortex_short_tags(NEW.tags);
    RETURN NEW;
END
$$;
CREATE TRIGGER name_tags BEFORE INSERT ON jobs FOR EACH ROW WHEN (NEW.tags <> '{}' AND NEW.short_tags IS NULL)
    EXECUTE FUNCTION cortex_name_tags();

CREATE INDEX idx_jobs_model ON jobs (model_name, submitted_at, id)
    INCLUDE (priority, unsuccessful, created_by, short_tags);
CREATE INDEX idx_jobs_priority ON jobs (priority, submitted_at, id)
    INCLUDE (unsuccessful, model_name, created_by, short_tags) WHERE priority <> 5;
CREATE INDEX idx_jobs_creator ON jobs (created_by, submitted_at, id)
    INCLUDE (priority, unsuccessful, short_tags) WHERE created_by IS NOT NULL;
CREATE INDEX idx_jobs_unsuccessful ON jobs (unsuccessful, submitted_at, id)
    INCLUDE (priority, model_name, created_by, short_tags) WHERE unsuccessful <> '';
