"""The admin API is what its OpenAPI document says, whatever is asked of it; schemathesis asks."""

import schemathesis
from hypothesis import settings

from haclient.proxy.admin import create_app
from tests.unit.proxy.admin_fakes import FakeBackend

TOKEN = "s3cret-t0ken"


def schema_of(token):
    backend = FakeBackend()
    backend.stopped = True  # a stream of events ends when there is nothing more to tell
    headers = {"Host": "127.0.0.1:9091"} | ({"Authorization": f"Bearer {token}"} if token else {})
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(backend, token), headers=headers)
    return schema, headers


SCHEMA, HEADERS = schema_of("")
GUARDED, TOKEN_HEADERS = schema_of(TOKEN)


@SCHEMA.parametrize()
@settings(max_examples=40, derandomize=True)
def test_without_a_token(case):
    """Every check there is: statuses, media types, bodies, refusals, methods."""
    case.call_and_validate(headers=HEADERS)


@GUARDED.parametrize()
@settings(max_examples=40, derandomize=True)
def test_with_a_token(case):
    """The same, and that the token is really asked for."""
    case.call_and_validate(headers=TOKEN_HEADERS)
