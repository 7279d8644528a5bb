"""What happened to orders on each day, counted by a consumer of the event log."""
