"""How a unit of work writes its events: to the log, and to the outbox."""
