"""Monthly partitions of the event log: created ahead of time, exported and dropped when they are old."""
