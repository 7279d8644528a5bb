"""API keys of test data: one for each user."""

import psycopg

from services.fields import new_id
from services.users.keys.secret import hash_of, hint_of, new_secret

_MAKE = """
    INSERT INTO api_keys (id, user_id, name, hash, hint, scopes, expires_at)
    VALUES (%s, %s, 'benchmark', %s, %s, '{orders:write}', now() + interval '1 day')
"""


def make_keys(url: str) -> dict[int, str]:
    """Make a key for each user; returns them by the user's id."""
    with psycopg.connect(url) as connection:
        keys = {row[0]: new_secret() for row in connection.execute("SELECT id FROM users").fetchall()}
        rows = [(new_id(), user_id, hash_of(key), hint_of(key)) for user_id, key in keys.items()]
        connection.cursor().executemany(_MAKE, rows)
        # The planner must not have to guess.
        connection.execute("ANALYZE api_keys")
    return keys
