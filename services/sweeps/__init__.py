"""Sweeps: what ends rows whose time is over, whatever single rows the database refuses."""
