"""Readers of the event log, each with its own position."""
