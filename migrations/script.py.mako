<%!
def statements(text):
    # Alembic puts comments around them.
    lines = (text or "").splitlines()
    return "\n".join(line for line in lines if not line.strip().startswith("# ###")).strip()
%>\
"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
Create Date: ${create_date}
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision: str = ${repr(up_revision)}
down_revision: str | Sequence[str] | None = ${repr(down_revision)}
branch_labels: str | Sequence[str] | None = ${repr(branch_labels)}
depends_on: str | Sequence[str] | None = ${repr(depends_on)}


def upgrade() -> None:
    # While a table lock waits, everything behind it waits, too: give up, and let the release step try again.
    op.execute("SET LOCAL lock_timeout = '5s'")
    ${statements(upgrades)}


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    ${statements(downgrades)}
