"""The worker process: ARQ settings, the outbox poll loop and scheduled jobs."""
