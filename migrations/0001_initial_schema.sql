-- The specification's first step: workers before jobs, because jobs refer to them.

CREATE TABLE workers (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    name VARCHAR(255) NOT NULL,
    hostname VARCHAR(255) NOT NULL,
    ip_address INET NOT NULL,
    port INTEGER NOT NULL,
    status VARCHAR(50) NOT NULL DEFAULT 'idle',
    capabilities JSONB NOT NULL DEFAULT '{}',
    max_concurrent_jobs INTEGER NOT NULL DEFAULT 1,
    current_job_count INTEGER NOT NULL DEFAULT 0,
    last_heartbeat TIMESTAMPTZ NOT NULL DEFAULT now(),
    heartbeat_interval_seconds INTEGER NOT NULL DEFAULT 30,
    version VARCHAR(50),
    metadata JSONB DEFAULT '{}',
    registered_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_active_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    UNIQUE (hostname, port)
);

CREATE INDEX idx_workers_status ON workers (status);
CREATE INDEX idx_workers_heartbeat ON workers (last_heartbeat DESC);
CREATE INDEX idx_workers_capabilities ON workers USING gin (capabilities);
CREATE INDEX idx_workers_available ON workers (current_job_count, max_concurrent_jobs)
    WHERE status = 'idle' AND current_job_count < max_concurrent_jobs;

CREATE TABLE jobs (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    name VARCHAR(255) NOT NULL,
    model_name VARCHAR(255) NOT NULL,
    model_version VARCHAR(50) NOT NULL,
    status VARCHAR(50) NOT NULL DEFAULT 'pending',
    priority INTEGER NOT NULL DEFAULT 5,
    max_retries INTEGER NOT NULL DEFAULT 3,
    retry_count INTEGER NOT NULL DEFAULT 0,
    timeout_seconds INTEGER NOT NULL DEFAULT 3600,
    input_data JSONB NOT NULL,
    output_data JSONB,
    error_message TEXT,
    error_stack TEXT,
    assigned_worker_id UUID REFERENCES workers (id),
    assigned_at TIMESTAMPTZ,
    submitted_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    queued_at TIMESTAMPTZ,
    started_at TIMESTAMPTZ,
    completed_at TIMESTAMPTZ,
    execution_duration_ms INTEGER,
    queue_wait_time_ms INTEGER,
    tags JSONB DEFAULT '{}',
    metadata JSONB DEFAULT '{}',
    created_by VARCHAR(255),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE INDEX idx_jobs_status ON jobs (status);
CREATE INDEX idx_jobs_priority ON jobs (priority DESC, submitted_at ASC);
CREATE INDEX idx_jobs_worker ON jobs (assigned_worker_id) WHERE assigned_worker_id IS NOT NULL;
CREATE INDEX idx_jobs_model ON jobs (model_name, model_version);
CREATE INDEX idx_jobs_submitted ON jobs (submitted_at DESC);
CREATE INDEX idx_jobs_tags ON jobs USING gin (tags);
CREATE INDEX idx_jobs_active ON jobs (priority DESC, submitted_at ASC)
    WHERE status IN ('pending', 'queued', 'assigned', 'running');

CREATE TABLE executions (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    job_id UUID NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    worker_id UUID NOT NULL REFERENCES workers (id),
    attempt_number INTEGER NOT NULL,
    status VARCHAR(50) NOT NULL,
    started_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    completed_at TIMESTAMPTZ,
    duration_ms INTEGER,
    output_data JSONB,
    error_message TEXT,
    error_stack TEXT,
    error_code VARCHAR(50),
    cpu_usage_percent DECIMAL(5, 2),
    memory_usage_mb INTEGER,
    gpu_usage_percent DECIMAL(5, 2),
    log_file_path TEXT,
    metadata JSONB DEFAULT '{}',
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE INDEX idx_executions_job ON executions (job_id, attempt_number);
CREATE INDEX idx_executions_worker ON executions (worker_id, started_at DESC);
CREATE INDEX idx_executions_status ON executions (status);
CREATE INDEX idx_executions_started ON executions (started_at DESC);

CREATE TABLE queue_metrics (
    id BIGSERIAL PRIMARY KEY,
    queue_depth INTEGER NOT NULL,
    pending_jobs INTEGER NOT NULL,
    running_jobs INTEGER NOT NULL,
    priority_1_count INTEGER NOT NULL DEFAULT 0,
    priority_2_count INTEGER NOT NULL DEFAULT 0,
    priority_3_count INTEGER NOT NULL DEFAULT 0,
    priority_4_count INTEGER NOT NULL DEFAULT 0,
    priority_5_count INTEGER NOT NULL DEFAULT 0,
    priority_6_count INTEGER NOT NULL DEFAULT 0,
    priority_7_count INTEGER NOT NULL DEFAULT 0,
    priority_8_count INTEGER NOT NULL DEFAULT 0,
    priority_9_count INTEGER NOT NULL DEFAULT 0,
    priority_10_count INTEGER NOT NULL DEFAULT 0,
    total_workers INTEGER NOT NULL,
    idle_workers INTEGER NOT NULL,
    busy_workers INTEGER NOT NULL,
    average_wait_time_ms INTEGER,
    average_execution_time_ms INTEGER,
    jobs_per_minute DECIMAL(10, 2),
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE INDEX idx_queue_metrics_time ON queue_metrics (recorded_at DESC);
