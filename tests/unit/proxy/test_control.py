"""The channel between supervisor and worker, and what it does when either end fails."""

import asyncio
import contextlib
import socket

import pytest

from haclient.errors import ConfigError
from haclient.proxy import control
from haclient.proxy.control import NoAnswer, Refused


class End:
    """One end; remembers what it was told."""

    def __init__(self):
        self.told = []
        self.go_on = asyncio.Event()

    async def answer(self, what, value):
        match what:
            case "echo":
                return value
            case "wait":
                await self.go_on.wait()
                return "waited"
            case "refuse":
                raise ConfigError("no such thing")
            case "huge":
                return "x" * value
        raise RuntimeError("a mistake, with a password in it")

    def hear(self, what, value):
        if what == "mistake":
            raise RuntimeError("a mistake")
        self.told.append((what, value))

    async def open(self, sock):
        self.channel = await control.connect(sock, self.answer, self.hear)
        self.running = asyncio.create_task(self.channel.run())


@contextlib.asynccontextmanager
async def pair():
    ends = End(), End()
    for end, sock in zip(ends, socket.socketpair(), strict=True):
        await end.open(sock)
    try:
        yield ends
    finally:
        for end in ends:
            end.channel.close()
            await end.running


@contextlib.asynccontextmanager
async def against(raw):
    """One real end, and a socket to play the other one by hand."""
    end = End()
    ours, theirs = socket.socketpair()
    await end.open(ours)
    theirs.setblocking(False)
    try:
        yield end, theirs
    finally:
        theirs.close()
        end.channel.close()
        await end.running


async def test_both_ends_ask_at_once_and_answers_find_their_questions():
    async with pair() as (a, b):
        slow = asyncio.create_task(a.channel.ask("wait", timeout_s=9))
        assert await asyncio.gather(
            *(end.channel.ask("echo", [i, "ä\n\udc80"], timeout_s=9) for i in range(20) for end in (a, b))
        ) == [[i, "ä\n\udc80"] for i in range(20) for _ in (a, b)]
        b.go_on.set()
        assert await slow == "waited"


async def test_a_refusal_says_why_and_a_mistake_does_not_say_too_much(caplog):
    async with pair() as (a, _):
        with pytest.raises(Refused, match=r"^no such thing$"):
            await a.channel.ask("refuse", timeout_s=9)
        with pytest.raises(Refused, match=r"^nonsense failed \(RuntimeError\); its log says where$"):
            await a.channel.ask("nonsense", timeout_s=9)
        assert "nonsense failed" in caplog.text


async def test_a_late_answer_is_nobodys():
    async with pair() as (a, b):
        with pytest.raises(NoAnswer, match=r"wait: no answer within 0\.001 s"):
            await a.channel.ask("wait", timeout_s=0.001)
        b.go_on.set()
        assert await a.channel.ask("echo", 1, timeout_s=9) == 1


async def test_every_question_fails_when_the_other_end_goes():
    async with pair() as (a, b):
        asked = [asyncio.create_task(a.channel.ask("wait", timeout_s=9)) for _ in range(3)]
        await asyncio.sleep(0)
        b.channel.close()
        for task in asked:
            with pytest.raises(NoAnswer, match="went before it answered"):
                await task
        await a.running
        with pytest.raises(NoAnswer, match="is gone"):
            await a.channel.ask("echo", timeout_s=9)
        a.channel.tell("report", {})


async def test_what_is_under_way_ends_with_the_channel():
    """An answer that nobody waits for any more is not worked on."""
    async with pair() as (a, b):
        asking = asyncio.create_task(a.channel.ask("wait", timeout_s=9))
        await b.channel.ask("echo", timeout_s=9)
        a.channel.close()
        await b.running
        with pytest.raises(NoAnswer):
            await asking


async def test_what_is_told_arrives_in_order_and_a_mistake_loses_only_itself(caplog):
    async with pair() as (a, b):
        for i in range(5):
            a.channel.tell("report", i)
            a.channel.tell("mistake", i)
        await a.channel.ask("echo", timeout_s=9)
        assert b.told == [("report", i) for i in range(5)]
        assert "was lost" in caplog.text


async def test_telling_an_end_that_does_not_read_takes_no_memory():
    async with against("nobody") as (end, theirs):
        for _ in range(10_000):
            end.channel.tell("event", "x" * 10_000)
        waiting = end.channel._writer.transport.get_write_buffer_size()
        assert waiting < 2 << 20
        theirs.recv(1)


@pytest.mark.parametrize("line", [b"no json\n", b"[1]\n", b'{"id": 3}\n', b'{"ask": "echo"}\n', b"\xff\n", b'"x"\n'])
async def test_nonsense_closes_the_channel(line, caplog):
    async with against("nonsense") as (end, theirs):
        theirs.sendall(line)
        if line == b'{"id": 3}\n':
            theirs.sendall(b'{"tell": "report"}\n')
            theirs.close()
            await end.running
            assert end.told == [("report", None)], "an answer to nothing is passed over"
            return
        await end.running
        assert "broke" in caplog.text
        assert theirs.recv(1) == b""


async def test_lines_are_bounded(monkeypatch, caplog):
    monkeypatch.setattr(control, "LINE_BYTES", 1_000)
    async with pair() as (a, b):
        with pytest.raises(Refused, match=r"the answer to huge has 2\d\d\d bytes; 1000 may be sent"):
            await a.channel.ask("huge", 2_000, timeout_s=9)
        a.channel.tell("event", "x" * 2_000)
        assert await a.channel.ask("echo", "still here", timeout_s=9) == "still here"
        assert b.told == []
    async with against("too much") as (end, theirs):
        theirs.send(b"x" * 3_000)
        await end.running
        assert "broke" in caplog.text
