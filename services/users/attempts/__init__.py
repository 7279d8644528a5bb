"""Attempts to give a password: counted, so that guessing takes ever longer."""
