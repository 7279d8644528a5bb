"""How a unit of work writes its events, to the log and the outbox, and its acts, to the audit log."""
