"""Reconciliation: everything recomputed from the tables, and each difference named."""
