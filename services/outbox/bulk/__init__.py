"""Bulk actions: what operators do to all events that match a filter. Stored as rows; workers run them in chunks."""
