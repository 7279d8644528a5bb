"""Placed orders confirmed or rejected, in batches."""
