"""HTTP for bulk actions: what is done to all events that match a filter."""
