"""Holds: pending transfers between users, posted or voided later."""
