"""What operators see: the backlog, dead letters, and whether the books balance."""
