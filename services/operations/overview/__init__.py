"""How the whole service goes, at a glance."""
