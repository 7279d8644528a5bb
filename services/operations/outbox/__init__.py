"""HTTP for the outbox: event types, workers, dead letters."""
