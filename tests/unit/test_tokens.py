"""Access tokens say who the caller is, for a while."""

from datetime import timedelta
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.tokens import Tokens
from services.errors import Unauthenticated
from services.fields import now
from tests.clocks import mislead

SECRET = "s" * 48


def claims(**more: Any) -> dict[str, Any]:
    at = now()
    return {"sub": "7", "iss": "waybill", "iat": at, "exp": at + timedelta(minutes=1), **more}


@pytest.mark.parametrize("user_id", [1, 7, 2**63 - 1])
def test_a_token_identifies_the_user_it_was_made_for(user_id: int) -> None:
    tokens = Tokens(SECRET, ttl=60)
    assert tokens.user_id(tokens.make(user_id)) == user_id


def test_a_token_lives_as_long_as_its_settings_say() -> None:
    token = Tokens(SECRET, ttl=90).make(7)
    read = jwt.decode(token, SECRET, algorithms=["HS256"], issuer="waybill")
    assert read["exp"] - read["iat"] == 90
    with pytest.raises(Unauthenticated, match="expired"):
        Tokens(SECRET, ttl=90).user_id(Tokens(SECRET, ttl=-31).make(7))


def test_a_token_that_was_read_before_still_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(SECRET, ttl=60)
    token = tokens.make(7)
    assert tokens.user_id(token) == 7
    mislead(monkeypatch, 60 + 28)
    assert tokens.user_id(token) == 7
    mislead(monkeypatch, 60 + 31)
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.user_id(token)


@pytest.mark.parametrize("claim", ["iat", "nbf"])
@pytest.mark.parametrize("seconds", [1, 29])
def test_a_fresh_token_is_valid_on_a_host_that_is_a_few_seconds_behind(claim: str, seconds: int) -> None:
    made = jwt.encode(claims(**{claim: now() + timedelta(seconds=seconds)}), SECRET, "HS256")
    assert Tokens(SECRET, ttl=60).user_id(made) == 7


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_a_token_from_further_in_the_future_is_refused_until_then(claim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(SECRET, ttl=60)
    token = jwt.encode(claims(**{claim: now() + timedelta(seconds=40)}), SECRET, "HS256")
    with pytest.raises(Unauthenticated):
        tokens.user_id(token)
    mislead(monkeypatch, 15)
    assert tokens.user_id(token) == 7


@pytest.mark.parametrize("claim", ["iat", "nbf", "exp"])
@pytest.mark.parametrize("value", [None, [], {}, "soon", float("nan"), 10**400], ids=repr)
def test_a_time_that_is_not_a_number_is_refused(claim: str, value: Any) -> None:
    with pytest.raises(Unauthenticated):
        Tokens(SECRET, ttl=60).user_id(jwt.encode(claims(**{claim: value}), SECRET, "HS256"))


def test_a_token_signed_with_another_key_is_forged() -> None:
    with pytest.raises(Unauthenticated):
        Tokens(SECRET, ttl=60).user_id(Tokens("t" * 48, ttl=60).make(7))


@pytest.mark.parametrize("position", [0, 10, 40, -20, -1])
def test_a_changed_token_is_forged(position: int) -> None:
    tokens = Tokens(SECRET, ttl=60)
    token = list(tokens.make(7))
    token[position] = "A" if token[position] not in "ABCD" else "z"
    with pytest.raises(Unauthenticated):
        tokens.user_id("".join(token))


@pytest.mark.parametrize("sub", ["0", "-1", "", "x", "1.5", str(2**63), "9" * 5000])
def test_a_subject_that_is_not_a_user_is_refused(sub: str) -> None:
    with pytest.raises(Unauthenticated):
        Tokens(SECRET, ttl=60).user_id(jwt.encode(claims(sub=sub), SECRET, "HS256"))


@pytest.mark.parametrize("missing", ["sub", "exp", "iss"])
def test_a_token_without_a_claim_is_refused(missing: str) -> None:
    kept = {name: value for name, value in claims().items() if name != missing}
    with pytest.raises(Unauthenticated):
        Tokens(SECRET, ttl=60).user_id(jwt.encode(kept, SECRET, "HS256"))


@pytest.mark.parametrize("algorithm", ["none", "HS384", "HS512"])
def test_only_one_algorithm_is_accepted(algorithm: str) -> None:
    secret = SECRET * 2
    token = jwt.encode(claims(), None if algorithm == "none" else secret, algorithm)
    with pytest.raises(Unauthenticated):
        Tokens(secret, ttl=60).user_id(token)


@given(text=st.text())
def test_arbitrary_text_is_not_a_token(text: str) -> None:
    with pytest.raises(Unauthenticated):
        Tokens(SECRET, ttl=60).user_id(text)
