"""Sweeps: end rows that are due, even if the database refuses some of them."""
