"""The outbox engine: event log, outbox rows, claim, retry and dead letters."""
