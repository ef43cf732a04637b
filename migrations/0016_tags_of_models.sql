-- Lists of a model's jobs with a tag are found in the index of tags alone. To merge it with the index of models, as for other
-- pairs of filters, costs more the more jobs have the one and the more have the other.

-- Nobody may write a job meanwhile, and no job goes on; to read jobs is possible but for lists by tags. In the order in
-- which submissions lock these tables.
LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE;

-- A leader of the version before goes on to write rows that name no model. They are passed over, and as its sessions do not
-- say what this version's say, the trigger of `jobs` writes the right ones.
ALTER TABLE job_tags ADD COLUMN model_name VARCHAR(255);
CREATE FUNCTION cortex_skip_row() RETURNS TRIGGER LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER skip_without_model BEFORE INSERT ON job_tags FOR EACH ROW WHEN (NEW.model_name IS NULL)
    EXECUTE FUNCTION cortex_skip_row();

CREATE OR REPLACE FUNCTION cortex_index_tags() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO job_tags (tag, submitted_at, job_id, model_name)
        SELECT cortex_tag(key, value), NEW.submitted_at, NEW.id, NEW.model_name FROM jsonb_each_text(NEW.tags);
    ELSE
        DELETE FROM job_tags t USING jsonb_each_text(OLD.tags)
        WHERE t.tag = cortex_tag(key, value) AND t.submitted_at = OLD.submitted_at AND t.job_id = OLD.id;
    END IF;
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER index_tags AFTER INSERT ON jobs FOR EACH ROW
    WHEN (NEW.tags <> '{}' AND current_setting('cortex.indexes_tags', TRUE) IS DISTINCT FROM 'with model')
    EXECUTE FUNCTION cortex_index_tags();

-- Written anew, which takes less room than to update every row.
TRUNCATE job_tags;
DROP INDEX idx_job_tags;
INSERT INTO job_tags (tag, submitted_at, job_id, model_name)
SELECT cortex_tag(key, value), submitted_at, id, model_name
FROM (SELECT id, submitted_at, model_name, tags FROM jobs WHERE tags <> '{}' ORDER BY submitted_at) tagged,
    jsonb_each_text(tags);
ALTER TABLE job_tags ALTER COLUMN model_name SET NOT NULL;
CREATE INDEX idx_job_tags ON job_tags (tag, submitted_at, job_id) INCLUDE (model_name);
