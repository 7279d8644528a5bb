"""Confirms or rejects placed orders, in batches."""
