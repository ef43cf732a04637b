-- How often a worker was lost after a job was given to it and before it said that it runs. A job that kills its worker at
-- once would otherwise go from worker to worker without end.
ALTER TABLE jobs ADD COLUMN early_losses INTEGER NOT NULL DEFAULT 0;
