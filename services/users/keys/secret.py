"""How an API key is written: `wbk_`, 256 random bits in base 62, and a checksum.

The prefix lets secret scanners find keys in texts, and the checksum lets them, and the API, tell a key from something
that only looks like one. A scanner can search for `wbk_[0-9A-Za-z]{49}`.
"""

import re
import secrets
import string
import zlib

from services.fields import sha256_of

PREFIX = "wbk_"
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_BYTES = 32
_RANDOM = 43
"""Digits of the random part: 62**43 is more than 2**256."""
_CHECKSUM = 6
"""Digits of the checksum: 62**6 is more than 2**32."""
_KEY = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_RANDOM + _CHECKSUM}}}", re.ASCII)

LENGTH = len(PREFIX) + _RANDOM + _CHECKSUM


def new_secret() -> str:
    """A fresh API key."""
    begun = PREFIX + _base62(int.from_bytes(secrets.token_bytes(_BYTES), "big"), _RANDOM)
    return begun + _checksum(begun)


def is_key(credential: str) -> bool:
    """Whether this is meant to be an API key, well formed or not."""
    return credential.startswith(PREFIX)


def is_well_formed(key: str) -> bool:
    """Whether the key has the right form and checksum, so that someone may have been given it."""
    return _KEY.fullmatch(key) is not None and key[-_CHECKSUM:] == _checksum(key[:-_CHECKSUM])


def hash_of(key: str) -> bytes:
    """What is stored of a key. A random key of 256 bits needs no slow hash."""
    return sha256_of(key)


def hint_of(key: str) -> str:
    """The beginning and the end of a key, by which people recognise it."""
    return f"{key[: len(PREFIX) + 4]}…{key[-4:]}"


def _checksum(begun: str) -> str:
    return _base62(zlib.crc32(begun.encode()), _CHECKSUM)


def _base62(number: int, digits: int) -> str:
    written = ""
    while number:
        number, digit = divmod(number, len(_DIGITS))
        written = _DIGITS[digit] + written
    return written.rjust(digits, _DIGITS[0])
