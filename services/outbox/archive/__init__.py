"""Old partitions of the event log as files."""
