"""Canaries: rows that are written only to be read back."""
