"""What operators look at: failures grouped by kind, and the events that wait, page by page."""
