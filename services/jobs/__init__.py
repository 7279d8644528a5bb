"""Scheduled jobs: a row for each, claimed like an event, so that every schedule runs, but never twice at a time."""
