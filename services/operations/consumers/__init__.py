"""What operators do to the consumers of the event log."""
