"""Scheduled jobs. Each is safe to stop at any point and to repeat, since a lost run is repeated."""
