"""The database's history: `versions/` holds one file per step, `env.py` runs them, `config.py` finds them from code.

The steps import nothing from the services, only from `batches.py` and `column_types.py` beside them.
"""
