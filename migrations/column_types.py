"""Column types that PostgreSQL has and SQLAlchemy lacks, as the migrations knew them.

Copies on purpose: a migration imports nothing from the services, which may change after it is released.
"""

from typing import Any

from sqlalchemy.types import UserDefinedType


class Xid8(UserDefinedType[int]):
    """`xid8`: a 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "xid8"


class PgSnapshot(UserDefinedType[str]):
    """`pg_snapshot`: which transactions had ended at one moment."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "pg_snapshot"
