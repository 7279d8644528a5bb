"""What a program may do with an API key, whatever scopes are stored with the key."""

from uuid import uuid4

import pytest

from services.users.repository import SignedIn
from services.users.rights import PERSONAL, Role, Scope


@pytest.mark.parametrize("scope", sorted(PERSONAL))
def test_a_key_that_was_made_before_a_scope_became_one_of_people_only_does_not_have_it(scope: Scope) -> None:
    person = SignedIn(1, "Ada", Role.admin, session_id=uuid4())
    program = SignedIn(1, "Ada", Role.admin, key_id=uuid4(), scopes=frozenset({scope, Scope.users_read}))
    assert person.may(scope)
    assert program.may(Scope.users_read)
    assert not program.may(scope)
