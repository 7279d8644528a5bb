"""Scheduled jobs: one row for each, claimed like an event, so that each job runs, but never twice at the same time."""
