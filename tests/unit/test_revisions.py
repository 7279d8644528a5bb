"""The revisions that processes compare the database with."""

from alembic.script import ScriptDirectory

from migrations.config import alembic_config
from migrations.revisions import revisions


def test_the_revisions_are_those_of_alembic_in_the_same_order() -> None:
    script = ScriptDirectory.from_config(alembic_config("postgresql://nowhere/none"))
    assert list(revisions()) == [step.revision for step in script.walk_revisions()][::-1]
