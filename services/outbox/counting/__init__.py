"""Counts of what waits and what is dead, which read a limited number of rows."""
