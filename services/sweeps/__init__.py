"""Sweeps: end rows whose time is over, even if the database refuses some of them."""
