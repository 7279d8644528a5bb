"""How API keys are written."""

import hashlib
import re
import zlib

import pytest

from services.api.tokens import read_key
from services.errors import Unauthenticated
from services.users.keys.secret import LENGTH, hash_of, hint_of, is_key, is_well_formed, new_secret

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def number_of(text: str) -> int:
    """The number that is written in base 62."""
    number = 0
    for digit in text:
        number = number * 62 + DIGITS.index(digit)
    return number


def test_a_key_is_a_prefix_256_random_bits_and_their_checksum() -> None:
    keys = [new_secret() for _ in range(500)]
    assert len(set(keys)) == 500
    for key in keys:
        assert re.fullmatch("wbk_[0-9A-Za-z]{49}", key), key
        assert len(key) == LENGTH
        assert number_of(key[-6:]) == zlib.crc32(key[:-6].encode())
        assert is_key(key)
        assert is_well_formed(key)
    bits = [number_of(key[4:-6]).bit_length() for key in keys]
    assert max(bits) == 256, "all of the bits are used"
    assert min(bits) > 230


@pytest.mark.parametrize("number", [0, 1, 2**256 - 1])
def test_every_number_has_the_same_length(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr("services.users.keys.secret.secrets.token_bytes", lambda size: number.to_bytes(size, "big"))
    key = new_secret()
    assert is_well_formed(key)
    assert number_of(key[4:-6]) == number


def test_one_changed_character_is_noticed() -> None:
    key = new_secret()
    for place in range(4, len(key)):
        changed = key[:place] + ("x" if key[place] != "x" else "y") + key[place + 1 :]
        assert not is_well_formed(changed), changed
    assert not is_well_formed(key[:10] + key[11] + key[10] + key[12:]) or key[10] == key[11]


@pytest.mark.parametrize("change", ["{}x", " {}", "{}\n", "x{}", "{:.52}", "{:.4}", "", "wbk_{}", "wbk_é{}"])
def test_a_malformed_key_is_refused_by_its_form(change: str) -> None:
    malformed = change.format(new_secret())
    assert not is_well_formed(malformed)
    with pytest.raises(Unauthenticated, match="53 characters"):
        read_key(malformed)


def test_what_is_stored_is_the_sha256_and_a_hint() -> None:
    key = new_secret()
    assert hash_of(key) == read_key(key) == hashlib.sha256(key.encode()).digest()
    assert hint_of(key) == f"{key[:8]}…{key[-4:]}"
    assert len(hint_of(key)) <= 16
