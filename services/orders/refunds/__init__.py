"""Refunds of lines of an order."""
