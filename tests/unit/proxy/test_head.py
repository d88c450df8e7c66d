"""What the header block of a request says, and which blocks are none."""

import base64

import pytest

from haclient.proxy.head import Head, HeadParser, admission, token_of
from haclient.wire.headers import HeaderReader, MalformedHeaders, encode_fields, literal

GRPC = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/milvus.proto.milvus.MilvusService/Search"),
    (b":authority", b"proxy"),
    (b"content-type", b"application/grpc"),
]
BASE64 = base64.b64encode(b"root:Milvus").decode()


def parse(*fields, admit=None, database="", head=GRPC):
    return HeadParser(admit, database)([*head, *[(n.encode(), v.encode("latin-1")) for n, v in fields]])


def test_a_call():
    head = parse(("te", "trailers"), ("user-agent", "x"), ("x-mine", "1"), ("blob-bin", "AAEC"), ("grpc-timeout", "2S"))
    assert (head.verb, head.path) == ("POST", "/milvus.proto.milvus.MilvusService/Search")
    assert head.grpc
    assert head.admitted
    assert not head.trailers
    assert head.method is not None
    assert head.method.name == "Search"
    assert head.metadata == (("x-mine", "1"), ("blob-bin", "AAEC"))
    assert head.timeout_s == 2.0
    assert (head.encoding, head.request_id, head.identifier, head.credentials) == ("identity", "", "", ())


def test_what_is_ours_is_not_passed_on():
    head = parse(
        ("authorization", BASE64),
        ("identifier", "7"),
        ("client-request-id", "mine"),
        ("grpc-encoding", "gzip"),
        ("grpc-accept-encoding", "gzip"),
        ("grpc-trace-bin", "AA"),
        ("host", "a"),
        ("content-length", "5"),
    )
    assert head.metadata == ()
    assert (head.identifier, head.request_id, head.encoding) == ("7", "mine", "gzip")
    assert head.credentials == (("authorization", BASE64),)


def test_a_database_is_named_for_who_names_none():
    assert parse(database="db").metadata == (("dbname", "db"),)
    assert parse(("dbname", "other"), database="db").metadata == (("dbname", "other"),)
    assert parse(("dbname", ""), database="db").metadata == (("dbname", "db"),)


@pytest.mark.parametrize(
    ("kind", "grpc"),
    [
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("application/grpc;charset=utf-8", True),
        ("application/grpc-web", False),
        ("application/grpc-web+proto", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_content_types(kind, grpc):
    head = parse(head=[*GRPC[:4], (b"content-type", kind.encode())])
    assert head.grpc is grpc
    assert (head.method is None) is not grpc


def test_plain_http_keeps_its_fields():
    fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/v2/x?a=b"), (b"accept", b"caf\xe9")]
    head = HeadParser(None, "db")(fields)
    assert (head.verb, head.path, head.grpc) == ("GET", "/v2/x?a=b", False)
    assert head.fields == (("accept", "caf\xe9"),)
    assert head.metadata == ()


def test_a_block_without_pseudo_header_fields_is_trailers():
    head = HeadParser(None, "")([(b"checksum", b"1")])
    assert head.trailers


def replaced(name, value):
    return [(n, value if n == name else v) for n, v in GRPC]


MALFORMED = {
    "no method": GRPC[1:],
    "no scheme": [GRPC[0], *GRPC[2:]],
    "no path": [*GRPC[:2], *GRPC[3:]],
    "an unknown pseudo-header": [(b":protocol", b"websocket"), *GRPC],
    "a method that is none": replaced(b":method", b"PO ST"),
    "a method that ends a line": replaced(b":method", b"GET / HTTP/1.1\r\nx: y"),
    "no method at all": replaced(b":method", b""),
    "a path that ends a line": replaced(b":path", b"/a\r\nhost: b"),
    "a path with a space": replaced(b":path", b"/a HTTP/1.1"),
    "a path beyond ASCII": replaced(b":path", "/caf\xe9".encode()),
    "an empty path": replaced(b":path", b""),
    "a path that is a URL": replaced(b":path", b"http://other/a"),
    "a time-out that is none": [*GRPC, (b"grpc-timeout", b"soon")],
    "a time-out of nine digits": [*GRPC, (b"grpc-timeout", b"123456789S")],
    "a time-out in other digits": [*GRPC, (b"grpc-timeout", "\u0661S".encode())],
    "metadata beyond ASCII": [*GRPC, (b"a", b"caf\xe9")],
    "metadata with a tab": [*GRPC, (b"a", b"b\tc")],
    "connection-specific": [*GRPC, (b"connection", b"close")],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name):
    with pytest.raises(MalformedHeaders):
        HeadParser(None, "")(MALFORMED[name])


def test_asterisk_is_for_options_only():
    assert not HeadParser(None, "")(replaced(b":path", b"*")).grpc


# -- blocks that differ only in fields that differ from call to call


def read(reader, *volatile):
    """Read a block as gRPC's C-core writes it: known fields, then literals that leave the table alone."""
    return reader.read(encode_fields(()) + KNOWN + b"".join(literal(n, v) for n, v in volatile))


#: GRPC and one more field, from the table that `warm` has filled.
KNOWN = bytes([0x80 | 61 + i for i in (6, 5, 4, 3, 2, 1)])


def warm(parser):
    reader = HeaderReader(parser, 65_536)
    fields = [*GRPC, (b"x-mine", b"1")]
    reader.read(b"".join(b"\x40" + literal(name, value)[1:] for name, value in fields))
    return reader


def test_volatile_fields_are_read_each_time():
    reader = warm(HeadParser(None, "db"))
    heads = [
        read(reader, (b"client-request-id", b"a"), (b"grpc-timeout", b"1S")),
        read(reader, (b"client-request-id", b"b"), (b"grpc-timeout", b"2S"), (b"traceparent", b"00-1")),
        read(reader, (b"client-request-unixmsec", b"17")),
        read(reader),
    ]
    assert [head.request_id for head in heads] == ["a", "b", "", ""]
    assert [head.timeout_s for head in heads] == [1.0, 2.0, None, None]
    assert {head.path for head in heads} == {heads[0].path}
    assert [dict(head.metadata).get("traceparent") for head in heads] == [None, "00-1", None, None]
    assert [dict(head.metadata).get("client-request-unixmsec") for head in heads] == [None, None, "17", None]
    assert all(dict(head.metadata)["x-mine"] == "1" for head in heads)
    assert all(dict(head.metadata)["dbname"] == "db" for head in heads)


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\0b", b"caf\xe9", b"\x7f"])
def test_volatile_fields_are_checked_like_others(value):
    """Also in plain HTTP, where they would go on into HTTP/1."""
    with pytest.raises(MalformedHeaders):
        read(warm(HeadParser(None, "")), (b"client-request-id", value))
    plain = HeadParser(None, "")
    base = plain([(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/v2/x")])
    with pytest.raises(MalformedHeaders):
        plain.amend(base, [(b"traceparent", value)])


def test_an_amended_head_is_another_one():
    parser = HeadParser(None, "")
    base = parser(GRPC)
    amended = parser.amend(base, [(b"client-request-id", b"a"), (b"grpc-timeout", b"1S")])
    assert (base.request_id, base.timeout_s) == ("", None)
    for name in Head.__slots__:
        if name not in ("request_id", "timeout_s"):
            assert getattr(amended, name) == getattr(base, name)


def test_secrets_are_never_volatile():
    """A token that were split off could be taken from one client's block for another's."""
    from haclient.wire.headers import VOLATILE

    assert not VOLATILE & {b"authorization", b"identifier", b"dbname", b"cookie"}


def test_the_token_is_part_of_what_is_remembered():
    """Blocks that differ in the token only are different blocks."""
    reader = HeaderReader(HeadParser(admission(["right"]), ""), 65_536)
    base = b"".join(literal(name, value) for name, value in GRPC)
    for token, admitted in ((b"right", True), (b"wrong", False), (b"right", True), (b"", False)):
        head = reader.read(base + literal(b"authorization", token) + literal(b"client-request-id", token))
        assert head.admitted is admitted


# -- tokens


@pytest.mark.parametrize(
    ("authorization", "token"),
    [
        (BASE64, "root:Milvus"),
        ("Bearer root:Milvus", "root:Milvus"),
        ("bearer  root:Milvus ", "root:Milvus"),
        ("root:Milvus", "root:Milvus"),
        ("", ""),
        ("Basic x", "Basic x"),
        ("caf\xe9", "caf\xe9"),
        (base64.b64encode(b"\xff\xfe").decode(), base64.b64encode(b"\xff\xfe").decode()),
    ],
)
def test_token_of(authorization, token):
    assert token_of(authorization) == token


@pytest.mark.parametrize(
    ("authorization", "admitted"),
    [
        (BASE64, True),
        ("Bearer root:Milvus", True),
        ("Bearer api-key", True),
        (base64.b64encode(b"api-key").decode(), True),
        ("Bearer root:milvus", False),
        ("Bearer", False),
        ("", False),
        (None, False),
        ("caf\xe9", False),
    ],
)
def test_who_is_admitted(authorization, admitted):
    admit = admission(["root:Milvus", "api-key"])
    fields = [] if authorization is None else [("authorization", authorization)]
    head = parse(*fields, admit=admit)
    assert head.admitted is admitted
    assert head.credentials == (), "what opens the proxy opens nothing else"


def test_no_tokens_ask_for_none():
    assert admission([]) is None
