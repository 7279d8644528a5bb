"""Accounts and their entries: what every movement of credits is written to."""
