"""Scheduled jobs. Each is safe to stop anywhere and to repeat, since a lost run is repeated."""
