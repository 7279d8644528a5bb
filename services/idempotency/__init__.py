"""Idempotency keys: requests that take effect only once."""
