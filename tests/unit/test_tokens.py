"""Access tokens say who the caller is, for a while."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.tokens import Tokens
from services.errors import Unauthenticated
from services.fields import now
from services.settings import Environment, Settings
from services.users.models import Presented
from tests.clocks import mislead

SECRET = "s" * 48
OTHER = "t" * 48
SESSION = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
SOMEBODY = Presented(7, SESSION)


def made(*secrets: str, audience: str = "production/public", ttl: int = 60) -> Tokens:
    return Tokens(*(secrets or (SECRET,)), audience=audience, ttl=ttl)


def key_id(secret: str) -> str:
    return str(jwt.get_unverified_header(made(secret).make(SOMEBODY))["kid"])


def claims(**more: Any) -> dict[str, Any]:
    at = now()
    return {
        "sub": "7",
        "sid": str(SESSION),
        "jti": "1",
        "iss": "waybill",
        "aud": "production/public",
        "iat": at,
        "exp": at + timedelta(minutes=1),
        **more,
    }


def signed(claims: dict[str, Any], secret: str = SECRET, algorithm: str = "HS256", **header: str) -> str:
    return jwt.encode(claims, secret, algorithm, headers={"kid": key_id(SECRET), **header})


@pytest.mark.parametrize("user_id", [1, 7, 2**63 - 1])
def test_a_token_identifies_the_user_it_was_made_for(user_id: int) -> None:
    caller = Presented(user_id, SESSION)
    assert made().read(made().make(caller)) == caller


def test_a_token_lives_as_long_as_its_settings_say() -> None:
    token = made(ttl=90).make(SOMEBODY)
    read = jwt.decode(token, SECRET, algorithms=["HS256"], issuer="waybill", audience="production/public")
    assert read["exp"] - read["iat"] == 90
    with pytest.raises(Unauthenticated, match="expired"):
        made(ttl=90).read(made(ttl=-31).make(SOMEBODY))


def test_each_token_has_an_id_of_its_own() -> None:
    ids = {jwt.decode(made().make(SOMEBODY), options={"verify_signature": False})["jti"] for _ in range(3)}
    assert len(ids) == 3


def test_a_token_of_another_tenant_or_environment_is_refused_although_the_key_is_the_same() -> None:
    for audience in ("production/tenant_b", "development/public"):
        with pytest.raises(Unauthenticated):
            made().read(made(audience=audience).make(SOMEBODY))
    tenants = [
        Tokens.from_settings(Settings(_env_file=None, environment=Environment.development, database_schema=schema))
        for schema in ("tenant_a", "tenant_b")
    ]
    assert tenants[0].read(tenants[0].make(SOMEBODY)) == SOMEBODY
    with pytest.raises(Unauthenticated):
        tenants[1].read(tenants[0].make(SOMEBODY))


def test_two_keys_are_valid_at_once_and_the_first_one_signs() -> None:
    before, both, after = made(OTHER), made(SECRET, OTHER), made(SECRET)
    old, new = before.make(SOMEBODY), both.make(SOMEBODY)
    assert both.read(old) == both.read(new) == after.read(new) == SOMEBODY
    for tokens, refused in ((after, old), (before, new)):
        with pytest.raises(Unauthenticated):
            tokens.read(refused)
    assert key_id(SECRET) != key_id(OTHER)
    settings = Settings(
        _env_file=None, environment=Environment.development, secret_key=SECRET, secret_key_previous=OTHER
    )
    development = Tokens(OTHER, audience="development/public", ttl=60)
    assert Tokens.from_settings(settings).read(development.make(SOMEBODY)) == SOMEBODY


def test_a_token_that_names_no_key_or_another_one_is_refused() -> None:
    both = made(SECRET, OTHER)
    for kid in ("", "unknown", key_id(OTHER)):
        with pytest.raises(Unauthenticated):
            both.read(signed(claims(), kid=kid))
    with pytest.raises(Unauthenticated):
        both.read(jwt.encode(claims(), SECRET, "HS256"))
    assert both.read(signed(claims())) == SOMEBODY


def test_a_token_that_was_read_before_still_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = made()
    token = tokens.make(SOMEBODY)
    assert tokens.read(token) == SOMEBODY
    mislead(monkeypatch, 60 + 28)
    assert tokens.read(token) == SOMEBODY
    mislead(monkeypatch, 60 + 31)
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.read(token)


@pytest.mark.parametrize("claim", ["iat", "nbf"])
@pytest.mark.parametrize("seconds", [1, 29])
def test_a_fresh_token_is_valid_on_a_host_that_is_a_few_seconds_behind(claim: str, seconds: int) -> None:
    token = signed(claims(**{claim: now() + timedelta(seconds=seconds)}))
    assert made().read(token) == SOMEBODY


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_a_token_from_further_in_the_future_is_refused_until_then(claim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = made()
    token = signed(claims(**{claim: now() + timedelta(seconds=40)}))
    with pytest.raises(Unauthenticated):
        tokens.read(token)
    mislead(monkeypatch, 15)
    assert tokens.read(token) == SOMEBODY


@pytest.mark.parametrize("claim", ["iat", "nbf", "exp"])
@pytest.mark.parametrize("value", [None, [], {}, "soon", float("nan"), 10**400], ids=repr)
def test_a_time_that_is_not_a_number_is_refused(claim: str, value: Any) -> None:
    with pytest.raises(Unauthenticated):
        made().read(signed(claims(**{claim: value})))


def test_a_token_signed_with_another_key_is_forged() -> None:
    with pytest.raises(Unauthenticated):
        made().read(made(OTHER).make(SOMEBODY))


@pytest.mark.parametrize("position", [0, 10, 40, -20, -1])
def test_a_changed_token_is_forged(position: int) -> None:
    tokens = made()
    token = list(tokens.make(SOMEBODY))
    token[position] = "A" if token[position] not in "ABCD" else "z"
    with pytest.raises(Unauthenticated):
        tokens.read("".join(token))


@pytest.mark.parametrize("sub", ["0", "-1", "", "x", "1.5", str(2**63), "9" * 5000])
def test_a_subject_that_is_not_a_user_is_refused(sub: str) -> None:
    with pytest.raises(Unauthenticated):
        made().read(signed(claims(sub=sub)))


@pytest.mark.parametrize("sid", ["", "x", 7, None, [], str(SESSION)[:-1]], ids=repr)
def test_a_session_that_is_not_one_is_refused(sid: Any) -> None:
    with pytest.raises(Unauthenticated):
        made().read(signed(claims(sid=sid)))


@pytest.mark.parametrize("missing", ["sub", "sid", "jti", "exp", "iss", "aud"])
def test_a_token_without_a_claim_is_refused(missing: str) -> None:
    kept = {name: value for name, value in claims().items() if name != missing}
    with pytest.raises(Unauthenticated):
        made().read(signed(kept))


@pytest.mark.parametrize("algorithm", ["none", "HS384", "HS512"])
def test_only_one_algorithm_is_accepted(algorithm: str) -> None:
    secret = SECRET * 2
    token = signed(claims(), "" if algorithm == "none" else secret, algorithm, kid=key_id(secret))
    with pytest.raises(Unauthenticated):
        made(secret).read(token)


@given(text=st.text())
def test_arbitrary_text_is_not_a_token(text: str) -> None:
    with pytest.raises(Unauthenticated):
        made().read(text)
