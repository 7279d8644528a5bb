"""Transfers that take effect at once, one or up to 500 in a request."""
