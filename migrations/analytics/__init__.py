"""The history of the analytics database: `alembic -n analytics ...`. `../env.py` runs its steps, too."""
