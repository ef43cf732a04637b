-- Who has registered a worker: the subject of a token, where tokens are required. Only that subject, and
-- administrators, may act for the worker.
ALTER TABLE workers ADD COLUMN owner VARCHAR(255);
