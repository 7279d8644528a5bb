"""What operators see and do: why an event waits, replaying, discarding, pausing."""
