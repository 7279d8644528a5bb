"""Corrections by operators: reversals and adjustments."""
