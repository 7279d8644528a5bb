"""Personal data: the export of what is stored about a user, and its erasure."""
