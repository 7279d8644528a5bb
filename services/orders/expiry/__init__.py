"""Orders that were not paid, or not confirmed, in time."""
