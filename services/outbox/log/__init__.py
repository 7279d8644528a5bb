"""Readers of the event log, each with a position of its own."""
