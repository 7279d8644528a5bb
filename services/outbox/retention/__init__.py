"""Monthly partitions of the event log: added ahead, exported and dropped when they are old."""
