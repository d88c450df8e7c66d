"""Who may ask the admin API: tokens, hosts, other sites' pages; and the headers of every answer."""

import hashlib
import re
from base64 import b64encode

import httpx
import pytest

from haclient.proxy.admin import create_app
from haclient.proxy.admin_guard import policy_of
from tests.unit.proxy.admin_fakes import FakeBackend

TOKEN = "s3cret-t0ken"
OPEN = ("/", "/healthz", "/readyz")
PATHS = [
    (method.upper(), path.replace("{name}", "e1"))
    for path, operations in create_app(FakeBackend()).openapi()["paths"].items()
    for method in operations
    if path != "/api/events"  # ASGITransport waits for the end of an answer
]
OTHERS = [("GET", "/openapi.json"), ("GET", "/nowhere"), ("GET", "/docs"), ("POST", "/"), ("GET", "/healthz/")]


def asking(backend, token="", host="127.0.0.1:9091", **headers):
    transport = httpx.ASGITransport(create_app(backend, token))
    return httpx.AsyncClient(transport=transport, base_url="http://test", headers={"Host": host, **headers})


@pytest.fixture
def backend():
    return FakeBackend()


# --- the token ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), [*PATHS, ("GET", "/api/events"), *OTHERS])
async def test_everything_asks_for_the_token(backend, method, path):
    """But for what holds no data; also what does not exist, so that nobody can look around."""
    async with asking(backend, TOKEN) as client:
        answer = await client.request(method, path)
    if (method, path) in [("GET", each) for each in OPEN]:
        assert answer.status_code == 200
    elif path == "/":
        assert answer.status_code == 405
    else:
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert backend.drained == []


@pytest.mark.parametrize(("method", "path"), [*PATHS, ("GET", "/openapi.json")])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_the_token_opens(backend, method, path, scheme):
    """Whatever the host is then: a page that was rebound does not know it."""
    backend.drained = ["e1"]
    async with asking(backend, TOKEN, host="proxy.example", Authorization=f"{scheme} {TOKEN}") as client:
        assert (await client.request(method, path)).status_code == 200


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer x-guess",
     f"Bearer {TOKEN.upper()}", f"Bearer {TOKEN} {TOKEN}", "Bearer s\xe9cret".encode("latin-1"), b"Bearer \xc3\xa9"],
)  # fmt: skip
async def test_wrong_tokens(backend, given):
    """Refused, and never shown to whoever reads the answer."""
    async with asking(backend, TOKEN, Authorization=given) as client:
        answer = await client.get("/api/fleet")
    assert answer.status_code == 401
    shown = answer.text + str(answer.headers)
    assert TOKEN not in shown
    assert "guess" not in shown


async def test_a_token_of_any_letters(backend):
    """What is configured is compared byte for byte."""
    async with asking(backend, "ключ", Authorization="Bearer ключ".encode()) as client:
        assert (await client.get("/api/fleet")).status_code == 200


def test_the_token_is_not_shown(backend):
    """Not by the app's middleware either, which shows its arguments."""
    app = create_app(backend, TOKEN)
    assert TOKEN not in repr(app.user_middleware) + repr(app.state._state)


# --- hosts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:9091", "127.1.2.3:1", "localhost", "LocalHost:9091", "[::1]", "[::1]:9091"]
)
@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_loopback_hosts(backend, host, method, path):
    """Answered without a token."""
    backend.drained = ["e1"]
    async with asking(backend, host=host) as client:
        assert (await client.request(method, path)).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:9091", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.1@evil",
     "10.0.0.1", "0.0.0.0", "[::]", "2130706433", "[::1", "::1:9091", "0x7f.1"],
)  # fmt: skip
@pytest.mark.parametrize(("method", "path"), [*PATHS, ("GET", "/api/events"), ("GET", "/nowhere")])
async def test_other_hosts(backend, host, method, path):
    """A page whose name was rebound to this machine reads nothing and changes nothing."""
    async with asking(backend, host=host) as client:
        answer = await client.request(method, path)
    assert (answer.status_code, list(answer.json())) == (421, ["detail"])
    assert "evil" not in answer.text
    assert (backend.drained, backend.streams) == ([], 0)


# --- other sites' pages -------------------------------------------------------------------------------------

HOST = "127.0.0.1:9091"


@pytest.mark.parametrize("token", ["", TOKEN])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": f"http://{HOST}"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": f"http://{HOST}"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": f"http://{HOST}"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:3000"}, 403),
        ({"Origin": "http://127.0.0.1:3000"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
    ],
)
async def test_changes_from_other_sites(backend, token, headers, status):
    """No page but the proxy's own drains anything; what is no browser says nothing of where it comes from."""
    async with asking(backend, token, HOST, Authorization=f"Bearer {token}", **headers) as client:
        answer = await client.post("/api/drain/e1")
        assert (await client.get("/healthz")).status_code == 200, "reading is no change"
    assert answer.status_code == status
    assert backend.drained == (["e1"] if status == 200 else [])


async def test_no_other_page_may_read(backend):
    """Nothing allows another origin (CORS), not even when it asks first."""
    async with asking(backend, Origin="http://evil.example") as client:
        for method in ("GET", "OPTIONS"):
            answer = await client.request(method, "/api/fleet", headers={"Access-Control-Request-Method": "POST"})
            assert not [name for name in answer.headers if name.startswith("access-control")]


# --- headers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "evil.example"])
@pytest.mark.parametrize("token", ["", TOKEN])
@pytest.mark.parametrize(
    ("method", "path"), [*PATHS, *OTHERS, ("POST", "/api/drain/x"), ("GET", "/api/history?every_s=2")]
)
async def test_headers(backend, token, host, method, path):
    """On every answer, refusals too."""
    async with asking(backend, token, host) as client:
        headers = (await client.request(method, path)).headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    policy = dict(each.split(" ", 1) for each in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]


def test_policy():
    """A page's own scripts and styles as they are, whatever they contain; nothing else."""
    script, style = "if (a < b && '</b>' != \"&amp;\") {\n  c();\n}", "a > b { color: red }"
    policy = policy_of(f"<p>x</p><style>{style}</style><script type=module>{script}</script><script>2</script>")
    parts = dict(each.split(" ", 1) for each in policy.split("; "))
    assert parts["script-src"] == f"{digest(script)} {digest('2')}"
    assert parts["style-src"] == digest(style)
    assert parts["connect-src"] == "'self'"
    assert "script-src" not in policy_of("<p>x</p>")


async def test_the_page_runs(backend):
    """Every inline script and style of the page served is allowed, and it has nothing that is not."""
    async with asking(backend) as client:
        answer = await client.get("/")
    policy = answer.headers["content-security-policy"]
    for _, text in re.findall(r"<(script|style)\b[^>]*>(.*?)</\1>", answer.text, re.DOTALL):
        assert digest(text) in policy
    assert not re.search(
        r"<[a-z][^>]*\s(on[a-z]+|style)\s*=", re.sub(r"<script.*?</script>", "", answer.text, flags=re.S)
    )


def digest(text):
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
