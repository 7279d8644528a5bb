"""Everything that happened to one order, in one list sorted by time."""
