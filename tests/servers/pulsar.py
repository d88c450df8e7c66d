"""The part of a Pulsar broker that Milvus 2.3 uses: in memory, one process, standard library only.

``python pulsar.py HOST PORT``. Topics are append-only lists that live until the process ends. A message's
bytes, with the producer's own checksum, go to consumers unchanged. Subscriptions are exclusive. As with a
real broker, SEEK closes the consumer (CLOSE_CONSUMER) and Milvus' client subscribes anew: its Pulsar client
(fork v0.6.10) waits for exactly that.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
import sys
from typing import ClassVar

# Numbers of BaseCommand.Type, which are also the numbers of BaseCommand's fields (PulsarApi.proto).
CONNECT, CONNECTED, SUBSCRIBE, PRODUCER, SEND, SEND_RECEIPT = 2, 3, 4, 5, 6, 7
MESSAGE, ACK, FLOW, UNSUBSCRIBE, SUCCESS, ERROR = 9, 10, 11, 12, 13, 14
CLOSE_PRODUCER, CLOSE_CONSUMER, PRODUCER_SUCCESS, PING, PONG, REDELIVER = 15, 16, 17, 18, 19, 20
PARTITIONS, PARTITIONS_RESPONSE, LOOKUP, LOOKUP_RESPONSE = 21, 22, 23, 24
SEEK, LAST_ID, LAST_ID_RESPONSE = 28, 29, 30

CONSUMER_BUSY = 5
MASK64 = (1 << 64) - 1
Field = int | bytes


def varint(number: int) -> bytes:
    number &= MASK64
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode(*fields: tuple[int, Field]) -> bytes:
    out = bytearray()
    for key, value in fields:
        if isinstance(value, int):
            out += varint(key << 3) + varint(value)
        else:
            out += varint(key << 3 | 2) + varint(len(value)) + value
    return bytes(out)


class Fields(dict[int, Field]):
    """The last value of each field of a message."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        at = 0

        def number() -> int:
            nonlocal at
            value = shift = 0
            while True:
                byte = data[at]
                at += 1
                value |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    return value

        while at < len(data):
            key, wire = divmod(number(), 8)
            if wire == 0:
                self[key] = number()
                continue
            size = number() if wire == 2 else {1: 8, 5: 4}[wire]
            self[key] = data[at : at + size]
            at += size

    def number(self, key: int, default: int = 0) -> int:
        value = self.get(key, default)
        assert isinstance(value, int)
        return value

    def data(self, key: int) -> bytes:
        value = self.get(key, b"")
        assert isinstance(value, bytes)
        return value

    def sub(self, key: int) -> Fields:
        return Fields(self.data(key))


def frame(kind: int, body: bytes, rest: bytes = b"") -> bytes:
    command = encode((1, kind), (kind, body))
    return struct.pack(">II", 4 + len(command) + len(rest), len(command)) + command + rest


def message_id(entry: int) -> bytes:
    return encode((1, 1), (2, entry), (3, -1))  # ledger 1 always, partition -1


class Topic:
    every: ClassVar[dict[bytes, Topic]] = {}

    def __init__(self) -> None:
        self.log: list[bytes] = []
        self.subscriptions: dict[bytes, Subscription] = {}

    @classmethod
    def get(cls, name: bytes) -> Topic:
        return cls.every.setdefault(name.removeprefix(b"persistent://"), cls())


class Subscription:
    def __init__(self, topic: Topic, name: bytes, position: int) -> None:
        self.topic = topic
        self.name = name
        self.position = self.acked = position
        self.connection: Connection | None = None
        self.consumer = self.permits = 0

    def push(self) -> None:
        if self.connection is None:
            return
        out = []
        while self.position < len(self.topic.log) and self.permits > 0:
            body = encode((1, self.consumer), (2, message_id(self.position)))
            out.append(frame(MESSAGE, body, self.topic.log[self.position]))
            self.position += 1
            self.permits -= 1
        if out:
            self.connection.transport.write(b"".join(out))

    def detach(self) -> None:
        self.connection = None
        self.permits = 0
        self.position = self.acked  # unacknowledged messages go out again


class Connection(asyncio.Protocol):
    url: ClassVar[bytes] = b""
    names: ClassVar[itertools.count[int]] = itertools.count(1)
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.buffer = bytearray()
        self.producers: dict[int, Topic] = {}
        self.consumers: dict[int, Subscription] = {}

    def connection_lost(self, exc: Exception | None) -> None:
        for subscription in self.consumers.values():
            if subscription.connection is self:
                subscription.detach()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        at = 0
        while len(self.buffer) - at >= 4:
            (total,) = struct.unpack_from(">I", self.buffer, at)
            if len(self.buffer) - at < 4 + total:
                break
            (size,) = struct.unpack_from(">I", self.buffer, at + 4)
            command = Fields(bytes(self.buffer[at + 8 : at + 8 + size]))
            rest = bytes(self.buffer[at + 8 + size : at + 4 + total])
            at += 4 + total
            kind = command.number(1)
            self.on_command(kind, command.sub(kind), rest)
        del self.buffer[:at]

    def send(self, kind: int, *fields: tuple[int, Field]) -> None:
        self.transport.write(frame(kind, encode(*fields)))

    def on_command(self, kind: int, body: Fields, rest: bytes) -> None:
        if kind == SEND:
            self.on_send(body, rest)
        elif kind == ACK:
            subscription, entry = self.consumers.get(body.number(1)), body.sub(3).number(2)
            if subscription and entry < len(subscription.topic.log):
                subscription.acked = max(subscription.acked, entry + 1)
        elif kind == FLOW:
            subscription = self.consumers.get(body.number(1))
            if subscription and subscription.connection is self:
                subscription.permits += body.number(2)
                subscription.push()
        elif kind == CONNECT:
            self.send(CONNECTED, (1, b"pulsar for tests"), (2, min(body.number(4), 15)), (3, 5 << 20))
        elif kind == PING:
            self.send(PONG)
        elif kind == PARTITIONS:
            self.send(PARTITIONS_RESPONSE, (1, 0), (2, body.number(2)), (3, 0))
        elif kind == LOOKUP:
            self.send(LOOKUP_RESPONSE, (1, self.url), (3, 1), (4, body.number(2)), (5, 1), (8, 0))
        elif kind == PRODUCER:
            self.producers[body.number(2)] = Topic.get(body.data(1))
            name = body.data(4) or b"producer-%d" % next(self.names)
            self.send(PRODUCER_SUCCESS, (1, body.number(3)), (2, name), (3, -1), (6, 1))
        elif kind == SUBSCRIBE:
            self.on_subscribe(body)
        elif kind in (UNSUBSCRIBE, CLOSE_CONSUMER):
            subscription = self.consumers.pop(body.number(1), None)
            if subscription and subscription.connection is self:
                subscription.detach()
                if kind == UNSUBSCRIBE:
                    subscription.topic.subscriptions.pop(subscription.name, None)
            self.send(SUCCESS, (1, body.number(2)))
        elif kind == CLOSE_PRODUCER:
            self.producers.pop(body.number(1), None)
            self.send(SUCCESS, (1, body.number(2)))
        elif kind == SEEK:
            self.on_seek(body)
        elif kind == LAST_ID:
            subscription = self.consumers.get(body.number(1))
            if subscription is None:
                self.send(ERROR, (1, body.number(2)), (2, 0), (3, b"no such consumer"))
            else:
                self.send(LAST_ID_RESPONSE, (1, message_id(len(subscription.topic.log) - 1)), (2, body.number(2)))
        elif kind == REDELIVER:
            subscription = self.consumers.get(body.number(1))
            if subscription:
                subscription.position = subscription.acked
                subscription.push()
        elif kind != PONG:
            print("unhandled command", kind, body, flush=True)

    def on_send(self, body: Fields, message: bytes) -> None:
        topic = self.producers.get(body.number(1))
        if topic is None:
            self.transport.close()
            return
        topic.log.append(message)
        self.send(SEND_RECEIPT, (1, body.number(1)), (2, body.number(2)), (3, message_id(len(topic.log) - 1)))
        for subscription in topic.subscriptions.values():
            subscription.push()

    def on_subscribe(self, body: Fields) -> None:
        topic, name, consumer = Topic.get(body.data(1)), body.data(2), body.number(4)
        subscription = topic.subscriptions.get(name)
        if subscription is None:
            start = 0 if body.number(13) else len(topic.log)  # initialPosition: Latest 0, Earliest 1
            subscription = topic.subscriptions[name] = Subscription(topic, name, start)
        if subscription.connection and (subscription.connection is not self or subscription.consumer != consumer):
            self.send(ERROR, (1, body.number(5)), (2, CONSUMER_BUSY), (3, b"Exclusive consumer is already connected"))
            return
        subscription.connection = self
        subscription.consumer = consumer
        subscription.permits = 0
        self.consumers[consumer] = subscription
        self.send(SUCCESS, (1, body.number(5)))

    def on_seek(self, body: Fields) -> None:
        consumer, request = body.number(1), body.number(2)
        subscription = self.consumers.pop(consumer, None)
        if subscription is None:
            self.send(ERROR, (1, request), (2, 0), (3, b"no such consumer"))
            return
        target, end = body.sub(3), len(subscription.topic.log)
        ledger, entry = target.number(1), target.number(2)
        if ledger in (0, MASK64) or entry == MASK64:  # before everything
            entry = 0
        elif ledger > 1:  # after everything
            entry = end
        subscription.acked = min(entry, end)
        subscription.detach()
        self.send(CLOSE_CONSUMER, (1, consumer), (2, MASK64 >> 1))
        self.send(SUCCESS, (1, request))


async def main(host: str, port: int) -> None:
    Connection.url = f"pulsar://{host}:{port}".encode()
    server = await asyncio.get_running_loop().create_server(Connection, host, port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
