"""Claiming, processing and retrying events."""
