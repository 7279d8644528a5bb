"""Which servers a test session chooses."""

import pytest
from docker.errors import DockerException

from tests.servers import ServerKind, choose_servers


class FakeClient:
    def __init__(self, answer: bool | Exception) -> None:
        self.answer = answer
        self.closed = False

    def ping(self) -> bool:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self) -> None:
        self.closed = True


def test_containers_are_used_if_an_engine_answers() -> None:
    client = FakeClient(True)
    assert choose_servers({}, lambda: client) is ServerKind.docker
    assert client.closed


@pytest.mark.parametrize("answer", [False, DockerException("no engine"), ConnectionRefusedError()])
def test_embedded_servers_are_used_if_the_engine_does_not_answer(answer: bool | Exception) -> None:
    client = FakeClient(answer)
    assert choose_servers({}, lambda: client) is ServerKind.embedded
    assert client.closed


def test_embedded_servers_are_used_if_there_is_no_engine() -> None:
    def connect() -> FakeClient:
        raise DockerException("no socket")

    assert choose_servers({}, connect) is ServerKind.embedded


def test_given_servers_take_precedence() -> None:
    given = {"WAYBILL_TEST_DATABASE_URL": "postgresql://...", "WAYBILL_TEST_REDIS_URL": "redis://..."}
    assert choose_servers(given, lambda: FakeClient(True)) is ServerKind.given


def test_giving_only_one_server_is_an_error() -> None:
    with pytest.raises(ValueError, match="only WAYBILL_TEST_REDIS_URL is set"):
        choose_servers({"WAYBILL_TEST_REDIS_URL": "redis://..."}, lambda: FakeClient(True))
