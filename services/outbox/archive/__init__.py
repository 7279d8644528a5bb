"""Exports of old partitions of the event log to files."""
