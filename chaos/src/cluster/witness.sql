-- Kept beside the tables while they are watched: every change to a job, and who made it.
BEGIN;
CREATE TABLE chaos_writes (
    id BIGINT GENERATED ALWAYS AS IDENTITY, relation TEXT, writer BIGINT, current BIGINT);
CREATE TABLE chaos_audit (
    id BIGINT GENERATED ALWAYS AS IDENTITY, job_id UUID, old_status TEXT, new_status TEXT,
    old_lease UUID, new_lease UUID, old_due TIMESTAMPTZ, new_due TIMESTAMPTZ, new_expires TIMESTAMPTZ,
    retries INT, epoch BIGINT, at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp());

-- In place: prepared statements know the function by its identity, not by its name.
DO $copy$ BEGIN
    EXECUTE format('CREATE FUNCTION cortex_pass_of_the_product(of_cluster UUID, of_epoch BIGINT)
        RETURNS BOOLEAN LANGUAGE plpgsql AS %L', (SELECT prosrc FROM pg_proc WHERE proname = 'cortex_pass'));
END $copy$;
CREATE OR REPLACE FUNCTION cortex_pass(of_cluster UUID, of_epoch BIGINT) RETURNS BOOLEAN LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('chaos.epoch', of_epoch::text, true);
    RETURN cortex_pass_of_the_product(of_cluster, of_epoch);
END $$;

CREATE FUNCTION chaos_note_write() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos_writes (relation, writer, current)
    SELECT TG_TABLE_NAME, nullif(current_setting('chaos.epoch', true), '')::bigint, (SELECT epoch FROM leadership);
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_noted AFTER INSERT OR UPDATE OR DELETE ON jobs EXECUTE FUNCTION chaos_note_write();
CREATE TRIGGER chaos_noted AFTER INSERT OR UPDATE OR DELETE ON executions EXECUTE FUNCTION chaos_note_write();
CREATE TRIGGER chaos_noted AFTER INSERT OR UPDATE OR DELETE ON workers EXECUTE FUNCTION chaos_note_write();
CREATE TRIGGER chaos_noted AFTER INSERT OR UPDATE OR DELETE ON job_counters EXECUTE FUNCTION chaos_note_write();

CREATE FUNCTION chaos_audit_job() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos_audit (job_id, old_status, new_status, old_lease, new_lease, old_due, new_due, new_expires,
        retries, epoch)
    VALUES (coalesce(NEW.id, OLD.id), OLD.status, NEW.status, OLD.lease_id, NEW.lease_id, OLD.next_retry_at,
        NEW.next_retry_at, CASE WHEN isfinite(NEW.lease_expires_at) THEN NEW.lease_expires_at END,
        NEW.retry_count, nullif(current_setting('chaos.epoch', true), '')::bigint);
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_audited AFTER INSERT OR UPDATE OR DELETE ON jobs
    FOR EACH ROW EXECUTE FUNCTION chaos_audit_job();
COMMIT;
