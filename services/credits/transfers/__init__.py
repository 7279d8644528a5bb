"""Transfers that take effect immediately, up to 500 in a request."""
