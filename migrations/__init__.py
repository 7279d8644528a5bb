"""The database's history: `versions/` has one file per step, `env.py` runs them, `config.py` is for use from code.

The steps import nothing from the services, only from `batches.py` and `column_types.py` beside them.
"""
