"""The sync drop-in: its shape is pymilvus' own, its handler retries nothing, its calls are futures as gRPC's are."""

import asyncio
import inspect
import threading

import grpc
import pymilvus
import pytest
from pymilvus import MilvusException
from pymilvus.client.grpc_handler import GrpcHandler
from pymilvus.grpc_gen import milvus_pb2, milvus_pb2_grpc

import haclient
from haclient import errors
from haclient.blocking import BlockingHandler, BlockingStubChannel, make_blocking_handler
from haclient.call import Kind, Reply
from haclient.portal import portal

OK = Reply(b"")
TRUE = Reply(milvus_pb2.BoolResponse(value=True).SerializeToString())


class Requests:
    """Takes the seam's calls and answers them, on the portal as a client does."""

    def __init__(self, answer):
        self.answer = answer
        self.seen = []
        self.go = threading.Event()

    def __call__(self, *call):
        self.seen.append(call)
        return portal().submit(self.reply())

    async def reply(self):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class Waiting(Requests):
    """Answers nothing until it is told to."""

    async def reply(self):
        while not self.go.is_set():
            await asyncio.sleep(0.001)
        return await super().reply()


def stub(requests, database=""):
    return milvus_pb2_grpc.MilvusServiceStub(BlockingStubChannel(requests, database))


HAS = milvus_pb2.HasCollectionRequest(collection_name="docs")


# The handler.


def decorated():
    return [
        name
        for name, member in inspect.getmembers(GrpcHandler, inspect.isfunction)
        if member.__code__.co_qualname.startswith("error_handler.")
    ]


def test_there_is_something_to_undecorate():
    names = decorated()
    assert len(names) > 50
    assert {"search", "query", "insert_rows", "create_collection"} <= set(names)


@pytest.mark.parametrize("name", decorated())
def test_no_method_of_the_handler_is_retried(name):
    """Whatever the method sends, a failure that pymilvus would retry 75 times is raised at the first one."""
    method = getattr(BlockingHandler, name)
    assert method is not getattr(GrpcHandler, name)
    calls = []

    class Down(grpc.RpcError):
        code = staticmethod(lambda: grpc.StatusCode.UNAVAILABLE)
        details = staticmethod(lambda: "down")

    def body(*_, **__):
        calls.append(1)
        raise Down

    (cell,) = [cell for cell in method.__closure__ if inspect.isfunction(cell.cell_contents)]
    original = cell.cell_contents
    cell.cell_contents = body
    try:
        with pytest.raises((MilvusException, grpc.RpcError)):
            method(object())
    finally:
        cell.cell_contents = original
    assert calls == [1]


def test_the_timeout_reaches_the_call():
    requests = Requests(OK)
    handler = make_blocking_handler(requests, "a", "")
    handler.drop_collection("docs", timeout=3.5)
    handler.drop_collection("docs")
    assert [timeout_s for *_, timeout_s in requests.seen] == [3.5, None]


def test_the_handler_never_introduces_itself_nor_adds_credentials():
    requests = Requests(OK)
    handler = make_blocking_handler(requests, "a", "")
    handler._wait_for_channel_ready()
    handler._setup_identifier_interceptor("user")
    handler.reset_password("user", "old", "new")
    handler.set_onetime_loglevel("debug")
    handler.drop_collection("docs")
    handler.register_state_change_callback(print)
    handler.close()
    assert [(method.name, metadata) for method, _, metadata, _ in requests.seen] == [
        ("UpdateCredential", ()),
        ("DropCollection", ()),
    ]


# The channel.


def test_a_stub_call_becomes_bytes_and_its_reply_a_message():
    requests = Requests(TRUE)
    assert stub(requests, "db1").HasCollection(HAS, timeout=2.0, metadata=(("x", "1"), ("y", ""))).value is True
    method, message, metadata, timeout_s = requests.seen[0]
    assert (method.name, method.kind, timeout_s) == ("HasCollection", Kind.READ, 2.0)
    assert milvus_pb2.HasCollectionRequest.FromString(message) == HAS
    assert metadata == (("x", "1"), ("dbname", "db1"))


def test_streams_are_refused_when_called_not_when_the_stub_is_made():
    made = stub(Requests(OK))
    if hasattr(made, "CreateReplicateStream"):
        with pytest.raises(NotImplementedError, match="CreateReplicateStream is a stream"):
            made.CreateReplicateStream(iter(()))


def test_a_grpc_refusal_passes_through_as_what_it_is():
    requests = Requests(Reply(b"", grpc.StatusCode.UNIMPLEMENTED.value[0], "unknown method"))
    with pytest.raises(grpc.RpcError) as caught:
        stub(requests).HasCollection(HAS)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNIMPLEMENTED, "unknown method")


@pytest.mark.parametrize(
    "original", [errors.Unavailable("it went wrong", code=503), errors.ConfigError("it went wrong")], ids=repr
)
def test_errors_are_ours_and_pymilvus_both(original):
    call = stub(Requests(original)).HasCollection
    for kind in (type(original), MilvusException):
        with pytest.raises(kind, match="it went wrong") as caught:
            call(HAS)
        assert caught.value.__cause__ is original
        assert isinstance(call.future(HAS).exception(), kind)


def test_an_error_of_the_calls_own_is_not_taken_for_that_of_grpc():
    with pytest.raises(TimeoutError, match="the disk is slow"):
        stub(Requests(TimeoutError("the disk is slow"))).HasCollection(HAS)


# Calls under way.


def test_a_future_answers_as_often_as_it_is_asked():
    requests = Waiting(TRUE)
    future = stub(requests).HasCollection.future(HAS)
    seen = []
    future.add_done_callback(seen.append)
    assert (future.done(), future.running()) == (False, True)
    with pytest.raises(grpc.FutureTimeoutError):
        future.result(timeout=0.01)
    with pytest.raises(grpc.FutureTimeoutError):
        future.exception(timeout=0.01)
    requests.go.set()
    assert future.exception() is None
    assert [future.result().value, future.result(timeout=1).value] == [True, True]
    assert (future.done(), future.running(), future.cancel(), future.cancelled()) == (True, False, False, False)
    portal().run(requests.reply())
    assert seen == [future]


def test_a_cancelled_future_says_so():
    future = stub(Waiting(TRUE)).HasCollection.future(HAS)
    assert future.cancel()
    with pytest.raises(grpc.FutureCancelledError):
        future.result()
    with pytest.raises(grpc.FutureCancelledError):
        future.exception()
    assert future.cancelled()


def test_pymilvus_own_futures_stand_on_it():
    requests = Waiting(Reply(milvus_pb2.SearchResults().SerializeToString()))
    handler = make_blocking_handler(requests, "a", "")
    future = handler.search("docs", data=[[0.1, 0.2]], anns_field="v", param={}, limit=3, _async=True)
    assert not future.is_done()
    requests.go.set()
    assert len(future.result()) == 0


def test_a_call_on_the_portals_own_thread_is_refused():
    requests = Requests(TRUE)
    call = stub(requests).HasCollection
    with pytest.raises(haclient.ConfigError, match="would wait for itself") as caught:
        portal().call(lambda: call(HAS))
    assert isinstance(caught.value, MilvusException)


# The client's shape.


def public(kind):
    return {
        name: member
        for name, member in inspect.getmembers(kind)
        if not name.startswith("_") and (callable(member) or isinstance(member, property))
    }


@pytest.mark.parametrize("name", sorted(public(pymilvus.MilvusClient)))
def test_every_public_method_is_there_with_the_same_signature(name):
    theirs = getattr(pymilvus.MilvusClient, name)
    ours = getattr(haclient.MilvusClient, name)
    if isinstance(theirs, property):
        assert isinstance(ours, property)
        return
    assert not inspect.iscoroutinefunction(ours)
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)


def test_what_is_ours_is_there_as_in_the_async_client():
    added = {"fleet", "refresh", "drain", "undrain", "subscribe"}
    for kind in (haclient.MilvusClient, haclient.AsyncMilvusClient):
        assert added <= set(public(kind))
    assert haclient.MilvusClient.__doc__


def test_it_is_constructed_positionally_as_theirs():
    theirs = list(inspect.signature(pymilvus.MilvusClient.__init__).parameters)
    ours = inspect.signature(haclient.MilvusClient.__init__).parameters
    assert list(ours)[:7] == theirs[:7] == ["self", "uri", "user", "password", "db_name", "token", "timeout"]
    assert ours["config"].kind is inspect.Parameter.KEYWORD_ONLY
