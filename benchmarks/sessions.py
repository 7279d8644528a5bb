"""Sessions of test data: one for each user, so that an access token can be made without signing in."""

from typing import LiteralString
from uuid import UUID

from services.users.models import Presented

BEGIN: LiteralString = """
    INSERT INTO sessions (id, user_id, expires_at)
    SELECT CAST(lpad(to_hex(id), 32, '0') AS uuid), id, now() + interval '1 year' FROM users ORDER BY id
"""
"""Begins the sessions of `session_of` for all users."""


def session_of(user_id: int) -> Presented:
    """The user, in the session that test data begins for each user."""
    return Presented(user_id, UUID(int=user_id))
