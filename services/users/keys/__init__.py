"""API keys: what programs sign in with, made and revoked by the people whose keys they are."""
