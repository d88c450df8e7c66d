"""What is bent of pymilvus: its retries, its channel, its errors. Pinned against the version installed."""

import copy
import inspect
import pickle

import grpc
import pymilvus
import pytest
from pymilvus import MilvusException
from pymilvus.client.async_grpc_handler import AsyncGrpcHandler
from pymilvus.grpc_gen import common_pb2, milvus_pb2, milvus_pb2_grpc

import haclient
from haclient import errors, seam
from haclient.call import Action, Attempt, Kind, Reply
from haclient.errors import AttemptTimeout, ConnectFailed, ConnectionLost
from haclient.seam import Handler, StubChannel, make_handler, milvus_error

PYMILVUS = tuple(int(part) for part in pymilvus.__version__.split(".")[:2])


class Requests:
    """Takes the seam's calls and answers them."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.seen = []

    async def __call__(self, method, message, metadata, timeout_s):
        self.seen.append((method, message, metadata, timeout_s))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


OK = Reply(b"")
ATTEMPTS = (
    Attempt("e1", "a", 1.0, 1.5, Action.FAILOVER, None, ConnectFailed("refused"), "refused"),
    Attempt("e2", "b", 1.5, 2.0, Action.FAILOVER, Reply(b"x"), None, "not ready", code=1),
)


# The handler.


def decorated():
    return [
        name
        for name, member in inspect.getmembers(AsyncGrpcHandler, inspect.iscoroutinefunction)
        if member.__code__.co_qualname.startswith("error_handler.")
    ]


@pytest.mark.skipif(PYMILVUS < (2, 6), reason="2.5 retries the making of the coroutine, which never fails")
def test_there_is_something_to_undecorate():
    names = decorated()
    assert len(names) > 50
    assert {"search", "query", "insert_rows", "create_collection"} <= set(names)


@pytest.mark.parametrize("name", decorated())
async def test_no_method_of_the_handler_is_retried(name):
    """Whatever the method sends, a failure that pymilvus would retry 75 times is raised at the first one."""
    method = getattr(Handler, name)
    assert method is not getattr(AsyncGrpcHandler, name)
    calls = []

    class Failing(grpc.aio.AioRpcError):
        pass

    async def body(*_, **__):
        calls.append(1)
        raise Failing(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="down")

    inner = method.__closure__
    bodies = [cell for cell in inner if inspect.iscoroutinefunction(cell.cell_contents)]
    assert len(bodies) == 1
    original = bodies[0].cell_contents
    bodies[0].cell_contents = body
    try:
        with pytest.raises((MilvusException, grpc.RpcError)):
            await method(object())
    finally:
        bodies[0].cell_contents = original
    assert calls == [1]


async def test_the_retry_on_a_stale_schema_remains():
    """It is pymilvus' own business: its schema cache is invalidated, and the write repeated once."""
    name = "insert_rows"
    wrapped = getattr(Handler, name)
    source = []
    function = wrapped
    while function is not None:
        source.append(function.__code__.co_qualname)
        cells = [c.cell_contents for c in function.__closure__ or () if inspect.iscoroutinefunction(c.cell_contents)]
        function = cells[0] if cells else None
    theirs = inspect.getsource(AsyncGrpcHandler.insert_rows)
    if "schema" in theirs.split("async def")[0]:
        assert any("schema" in part for part in source), source


async def test_the_timeout_reaches_the_call():
    requests = Requests(OK)
    handler = make_handler(requests, "a", "")
    await handler.drop_collection("docs", timeout=3.5)
    assert requests.seen[0][3] == 3.5
    await handler.drop_collection("docs")
    assert requests.seen[-1][3] is None


async def test_the_handler_never_introduces_itself():
    requests = Requests(OK)
    handler = make_handler(requests, "a", "")
    await handler.ensure_channel_ready()
    await handler.drop_collection("docs")
    assert "Connect" not in [m.name for m, *_ in requests.seen]


# The channel.


async def call(requests, rpc="HasCollection", request=None, **options):
    stub = milvus_pb2_grpc.MilvusServiceStub(StubChannel(requests, options.pop("database", "")))
    return await getattr(stub, rpc)(request or milvus_pb2.HasCollectionRequest(collection_name="docs"), **options)


async def test_a_stub_call_becomes_bytes_and_its_reply_a_message():
    requests = Requests(Reply(milvus_pb2.BoolResponse(value=True).SerializeToString()))
    reply = await call(requests, timeout=2.0, metadata=(("x", "1"),))
    assert reply.value is True
    method, message, metadata, timeout_s = requests.seen[0]
    assert (method.name, method.kind, timeout_s) == ("HasCollection", Kind.READ, 2.0)
    assert milvus_pb2.HasCollectionRequest.FromString(message).collection_name == "docs"
    assert metadata == (("x", "1"),)


async def test_empty_metadata_is_left_out_and_the_database_put_in():
    requests = Requests(OK)
    await call(requests, metadata=[("a", "1"), ("identifier", ""), ("dbname", "")], database="db1")
    await call(requests, metadata=[("dbname", "other")], database="db1")
    await call(requests, metadata=None)
    assert [m for _, _, m, _ in requests.seen] == [(("a", "1"), ("dbname", "db1")), (("dbname", "other"),), ()]


async def test_every_method_of_the_stubs_is_known():
    """A method that is not in the table would be taken for a write that may not be repeated."""
    unknown = []
    for name, method in milvus_pb2.DESCRIPTOR.services_by_name["MilvusService"].methods_by_name.items():
        if seam.methods.named(name).path != f"/{method.containing_service.full_name}/{name}":
            unknown.append(name)
    assert not unknown


async def test_an_unknown_method_is_a_write_that_is_not_repeated():
    requests = Requests(OK)
    rpc = StubChannel(requests).unary_unary("/milvus.proto.milvus.MilvusService/Novelty", bytes, bytes)
    assert await rpc(b"abc") == b""
    method = requests.seen[0][0]
    assert (method.kind, method.idempotent, method.hedgeable) == (Kind.WRITE, False, False)


async def test_streams_are_refused_when_called_not_when_the_stub_is_made():
    stub = milvus_pb2_grpc.MilvusServiceStub(StubChannel(Requests(OK)))
    if hasattr(stub, "CreateReplicateStream"):
        with pytest.raises(NotImplementedError, match="CreateReplicateStream is a stream"):
            stub.CreateReplicateStream(iter(()))


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT]
)
async def test_a_grpc_refusal_passes_through_as_what_it_is(code):
    requests = Requests(Reply(b"", code.value[0], "unknown method Novelty", (("h", "1"),), (("t", "2"),)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(requests)
    assert caught.value.code() is code
    assert caught.value.details() == "unknown method Novelty"
    assert dict(caught.value.initial_metadata()) == {"h": "1"}
    assert dict(caught.value.trailing_metadata()) == {"t": "2"}


@pytest.mark.parametrize(("code", "words"), [(16, "wrong or missing credentials"), (7, "not permitted")])
async def test_refused_credentials_are_our_own_clear_error(code, words):
    with pytest.raises(haclient.AccessDenied, match=words) as caught:
        await call(Requests(Reply(b"", code, "auth check failure")))
    assert isinstance(caught.value, MilvusException)
    assert caught.value.code == code


async def test_a_strange_grpc_code_is_unknown():
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(Requests(Reply(b"", 77, "what")))
    assert caught.value.code() is grpc.StatusCode.UNKNOWN


# Errors.

KINDS = [
    errors.Unavailable,
    errors.DeadlineExceeded,
    errors.PoisonedCall,
    errors.WriteNotConfirmed,
    errors.WriteRefused,
    errors.AccessDenied,
]


@pytest.mark.parametrize("kind", KINDS)
async def test_errors_are_ours_and_pymilvus_both(kind):
    original = kind("it went wrong", ATTEMPTS, code=503)
    for base in (kind, errors.CallError, errors.HAClientError, MilvusException, Exception):
        with pytest.raises(base) as caught:
            await call(Requests(original))
    error = caught.value
    assert error.code == 503
    assert error.summary == "it went wrong"
    assert error.attempts == ATTEMPTS
    text = "it went wrong\nattempts:\n  1. a/e1 after 500 ms: refused\n  2. b/e2 after 500 ms: not ready"
    assert error.message == text
    assert str(error) == f"<{kind.__name__}: (code=503, message={text})>"
    assert error.__cause__ is original


def test_there_is_a_twin_for_every_error_a_call_can_end_with():
    def leaves(kind):
        below = kind.__subclasses__()
        ours = [k for k in below if k.__module__ == "haclient.errors"]
        return [leaf for k in ours for leaf in leaves(k)] or [kind]

    assert set(leaves(errors.CallError)) == set(seam._BOTH)


async def test_a_configuration_error_is_wrapped_once():
    with pytest.raises(haclient.ConfigError) as caught:
        await call(Requests(seam.ConfigError("what to do")))
    assert caught.value.message == "what to do"


async def test_a_configuration_error_is_both_too():
    with pytest.raises(haclient.ConfigError, match="what to do") as caught:
        await call(Requests(errors.ConfigError("what to do")))
    assert isinstance(caught.value, MilvusException)
    assert isinstance(caught.value, ValueError)
    assert "what to do" in caught.value.message


SAMPLES = [
    *(kind("it went wrong", ATTEMPTS, code=503) for kind in KINDS),
    *(milvus_error(kind("it went wrong", ATTEMPTS, code=503)) for kind in KINDS),
    errors.ConfigError("wrong"),
    seam.ConfigError("wrong"),
    ConnectionLost("gone", sent=True),
    ConnectFailed("refused"),
    AttemptTimeout("slow", sent=False),
    errors.StreamReset("reset", code=7, sent=False),
    errors.TransportClosed(),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda e: f"{type(e).__module__}.{type(e).__name__}")
@pytest.mark.parametrize(
    "how", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"]
)
def test_errors_survive_being_sent_to_another_process(error, how):
    again = how(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    for name in ("code", "summary", "message", "sent"):
        assert getattr(again, name, None) == getattr(error, name, None)
    assert [str(a) for a in getattr(again, "attempts", ())] == [str(a) for a in getattr(error, "attempts", ())]


# The client's shape.


def public(kind):
    return {
        name: member
        for name, member in inspect.getmembers(kind)
        if not name.startswith("_") and (callable(member) or isinstance(member, property))
    }


@pytest.mark.parametrize("name", sorted(public(pymilvus.AsyncMilvusClient)))
def test_every_public_method_is_there_with_the_same_signature(name):
    theirs = getattr(pymilvus.AsyncMilvusClient, name)
    ours = getattr(haclient.AsyncMilvusClient, name)
    if isinstance(theirs, property):
        assert isinstance(ours, property)
        return
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)
    if ours is not theirs:
        wanted, given = inspect.signature(theirs).parameters, inspect.signature(ours).parameters
        assert list(given)[: len(wanted)] == list(wanted) or any(p.kind is p.VAR_KEYWORD for p in given.values())


def test_it_is_constructed_positionally_as_theirs():
    theirs = list(inspect.signature(pymilvus.AsyncMilvusClient.__init__).parameters)
    ours = list(inspect.signature(haclient.AsyncMilvusClient.__init__).parameters)
    assert ours[:7] == theirs[:7] == ["self", "uri", "user", "password", "db_name", "token", "timeout"]


def test_status_of_a_schema_mismatch_is_pymilvus_to_handle():
    status = common_pb2.Status(code=109, reason="collection schema mismatch")
    assert (
        seam._refusal(seam.methods.named("Insert"), Reply(status.SerializeToString(), 13, "x")).code()
        is grpc.StatusCode.INTERNAL
    )
