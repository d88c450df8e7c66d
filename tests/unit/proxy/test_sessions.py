"""One client, many servers, a number for each."""

import gc

import pytest
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from haclient.proxy import sessions as module
from haclient.proxy.sessions import Sessions

A, B = ("c0", "a"), ("c1", "b")


def answer(identifier):
    return milvus_pb2.ConnectResponse(
        identifier=identifier, server_info=common_pb2.ServerInfo(build_tags="v2.4.1")
    ).SerializeToString()


def introduced(sessions, place, identifier):
    message = milvus_pb2.ConnectResponse.FromString(sessions.introduce(place, answer(identifier)))
    assert message.server_info.build_tags == "v2.4.1"
    return message.identifier


def test_the_client_gets_a_number_of_ours_and_the_server_its_own_back():
    sessions = Sessions()
    ours = introduced(sessions, A, 440_000_000_000_000_001)
    assert ours != 440_000_000_000_000_001
    assert 0 < ours < 1 << 62 | 1
    session = sessions.of(str(ours))
    assert session is not None
    assert session.get(A) == (("identifier", "440000000000000001"),)
    assert session.get(B) is None, "a server that has not met the client gets no number"


def test_two_clients_of_one_server_are_two():
    sessions = Sessions()
    first, second = introduced(sessions, A, 7), introduced(sessions, A, 8)
    assert first != second
    assert sessions.of(str(first)) == {A: (("identifier", "7"),)}
    assert sessions.of(str(second)) == {A: (("identifier", "8"),)}


@pytest.mark.parametrize("message", [b"", answer(0), b"\x18", b"\x08\xff", b"\xff" * 12], ids=repr)
def test_answers_that_name_nobody_are_passed_on(message):
    sessions = Sessions()
    assert sessions.introduce(A, message) == message
    assert not sessions._known


@pytest.mark.parametrize("identifier", ["", "7", "x", "-1"])
def test_numbers_of_others_are_not_known(identifier):
    sessions = Sessions()
    introduced(sessions, A, 7)
    assert sessions.of(identifier) is None


def test_the_ones_not_heard_of_for_longest_are_forgotten(monkeypatch):
    monkeypatch.setattr(module, "_MOST", 3)
    sessions = Sessions()
    first, second, third = (str(introduced(sessions, A, i)) for i in (1, 2, 3))
    assert sessions.of(first) is not None
    fourth = str(introduced(sessions, A, 4))
    assert [sessions.of(one) is not None for one in (first, second, third, fourth)] == [True, False, True, True]


class Connection:
    """Stands for one of the wire's."""


def test_what_a_client_has_written_and_seen_ends_with_its_connection():
    sessions = Sessions()
    one, other = Connection(), Connection()
    past = sessions.past(one)
    assert sessions.past(one) is past
    assert sessions.past(other) is not past
    del one
    gc.collect()
    assert len(sessions._pasts) == 1
