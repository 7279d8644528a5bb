"""Roles change once a second admin approves."""
