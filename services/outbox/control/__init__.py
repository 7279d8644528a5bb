"""What operators can see and do: explain why an event waits, replay, discard, pause."""
