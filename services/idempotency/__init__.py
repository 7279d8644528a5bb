"""Requests that take effect once."""
