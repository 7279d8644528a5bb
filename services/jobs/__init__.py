"""Scheduled jobs: a row for each, claimed like an event, so that every schedule runs and none runs twice at a time."""
