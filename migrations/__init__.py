"""The database's history: `versions/` holds one file per step, `env.py` runs them, `config.py` finds them from code."""
