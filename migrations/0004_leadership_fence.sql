-- Who may write scheduling state. The epoch is the fencing token: the log index of the leader's
-- committed LeaderEpoch entry in the Raft group `cluster_id`.

CREATE TABLE leadership (
    singleton BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (singleton),
    cluster_id UUID NOT NULL,
    epoch BIGINT NOT NULL,
    term BIGINT NOT NULL,
    leader_id BIGINT NOT NULL,
    since TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- The advisory lock of the fence: every leader transaction holds it shared, taking over holds it alone.
CREATE FUNCTION cortex_fence_key() RETURNS BIGINT LANGUAGE sql IMMUTABLE AS $$ SELECT 4855372910287431::BIGINT $$;

-- First call of every leader transaction: holds the fence open until the transaction ends, or raises
-- CX001 when another epoch has taken over.
CREATE FUNCTION cortex_fence(of_cluster UUID, of_epoch BIGINT) RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(cortex_fence_key());
    IF NOT EXISTS (SELECT FROM leadership WHERE cluster_id = of_cluster AND epoch = of_epoch) THEN
        RAISE EXCEPTION 'epoch % is fenced off: another leader has taken over', of_epoch USING ERRCODE = 'CX001';
    END IF;
END
$$;

-- Taking over: waits out every transaction of older leaders, then stores the new epoch. Raises CX001 when
-- a newer epoch is stored, CX002 when the database belongs to another Raft group.
CREATE FUNCTION cortex_take_over(of_cluster UUID, of_epoch BIGINT, of_term BIGINT, of_leader BIGINT)
RETURNS VOID LANGUAGE plpgsql AS $$
DECLARE
    stored leadership%ROWTYPE;
BEGIN
    PERFORM pg_advisory_xact_lock(cortex_fence_key());
    SELECT * INTO stored FROM leadership;
    IF FOUND AND stored.cluster_id <> of_cluster THEN
        RAISE EXCEPTION 'the database belongs to cluster %, not to %', stored.cluster_id, of_cluster
            USING ERRCODE = 'CX002';
    END IF;
    IF FOUND AND stored.epoch > of_epoch THEN
        RAISE EXCEPTION 'epoch % is fenced off: epoch % has taken over', of_epoch, stored.epoch
            USING ERRCODE = 'CX001';
    END IF;
    INSERT INTO leadership (cluster_id, epoch, term, leader_id)
    VALUES (of_cluster, of_epoch, of_term, of_leader)
    ON CONFLICT (singleton) DO UPDATE
        SET epoch = of_epoch, term = of_term, leader_id = of_leader, since = now();
END
$$;
