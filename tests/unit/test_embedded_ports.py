"""The next free port."""

import socket

import pytest

from services.local.embedded import EmbeddedServerError
from services.local.embedded.ports import any_free_port, is_free, next_free_port


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_with_a_listener_is_not_free(address: str) -> None:
    with socket.create_server((address, 0)) as other:
        port = other.getsockname()[1]
        assert not is_free(port)
        assert next_free_port(port) > port
    assert is_free(port)


def test_a_free_port_is_taken_as_it_is() -> None:
    port = any_free_port()
    assert next_free_port(port) == port


def test_ports_meant_for_others_are_left_out() -> None:
    port = any_free_port()
    assert next_free_port(port, taken=[port]) > port


def test_no_port_left() -> None:
    with pytest.raises(EmbeddedServerError, match="no free TCP port at or above 65535"):
        next_free_port(65_535, taken=[65_535])
