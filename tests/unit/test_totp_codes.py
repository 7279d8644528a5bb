"""One-time codes, and the encryption of their secrets."""

from time import monotonic, time

import pytest

from services.clock import CLOCK
from services.users.totp import codes
from services.users.totp.codes import Secrets
from tests.clocks import shift_the_host

SECRET = b"12345678901234567890"
KEY, OTHER_KEY = "a key of the installation", "another key"


@pytest.mark.parametrize(
    ("at", "code"),
    # RFC 6238, appendix B, the last six digits.
    [(59, "287082"), (1111111109, "081804"), (1111111111, "050471"), (1234567890, "005924"), (20000000000, "353130")],
)
def test_codes_are_those_of_the_rfc(at: int, code: str) -> None:
    assert codes.code_at(SECRET, at // 30) == code


@pytest.mark.parametrize(("apart", "accepted"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
def test_a_phone_may_be_wrong_by_one_step(monkeypatch: pytest.MonkeyPatch, apart: int, accepted: bool) -> None:
    monkeypatch.setattr(codes, "current_step", lambda: 1000)
    assert codes.step_of(SECRET, codes.code_at(SECRET, 1000 + apart)) == (1000 + apart if accepted else None)


def test_codes_are_compared_with_the_time_of_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    shift_the_host(monkeypatch, 3600)
    CLOCK.follow(time(), monotonic(), 0.001)
    right, wrong = (codes.code_at(SECRET, int(at) // codes.STEP) for at in (time(), time() + 3600))
    assert codes.step_of(SECRET, right) is not None
    assert codes.step_of(SECRET, wrong) is None, "the clock of this host does not count"


@pytest.mark.parametrize("typed", ["", "28708", "2870821", "٢٨٧٠٨٢", "abcdef", "28708\n"])
def test_what_is_not_six_digits_is_no_code(typed: str) -> None:
    assert codes.step_of(SECRET, typed) is None


def test_the_address_for_the_app_contains_the_secret_and_names_the_account() -> None:
    uri = codes.uri_of(SECRET, "ada@example.com", "Waybill")
    assert uri.startswith("otpauth://totp/Waybill:ada%40example.com?")
    assert {"secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "digits=6", "period=30"} <= set(uri.partition("?")[2].split("&"))


def test_a_sealed_secret_is_read_only_with_its_key_and_for_its_user() -> None:
    sealed = Secrets(KEY).seal(7, SECRET)
    assert SECRET not in sealed.token
    assert Secrets(KEY).open(7, sealed) == SECRET
    assert Secrets(OTHER_KEY, KEY).open(7, sealed) == SECRET, "the previous key reads"
    assert Secrets(OTHER_KEY).open(7, sealed) is None
    assert Secrets(KEY).open(8, sealed) is None, "copied to another user's row, it is worthless"
    assert Secrets(OTHER_KEY, KEY).seal(7, SECRET).key_id == Secrets(OTHER_KEY).key_id, "the current key writes"


def test_recovery_codes_are_long_distinct_and_typed_in_any_form() -> None:
    made = codes.new_recovery_codes()
    assert len(set(made)) == 10
    # 5 bits each. With at least 112, a hash without a salt is enough (ASVS 5.0.0, 6.5.2).
    assert all(len(codes.typed(code)) * 5 == 120 for code in made)
    assert codes.hash_of(f" {made[0].lower().replace('-', ' ')} ") == codes.hash_of(made[0])
    assert not any(codes.is_of_an_app(codes.typed(code)) for code in made)
