"""Reconciliation: recomputes everything from the tables and reports each difference."""
