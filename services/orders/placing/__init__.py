"""Placing orders: what one order and a group of them have in common, and the group."""
