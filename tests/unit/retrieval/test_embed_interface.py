"""What every embedder has in common, and what is refused before anything is sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from haclient.errors import BadQuery, ConfigError, EmbeddingError
from haclient.retrieval.embed import Fingerprint, HashingEmbedder, HTTPEmbedder, SentenceTransformerEmbedder
from haclient.retrieval.embed.embedder import checked, listed


@pytest.mark.parametrize("fingerprint", [Fingerprint("org/m-1", 384, True), Fingerprint("two words", 3, False)])
def test_fingerprint_in_a_text(fingerprint: Fingerprint) -> None:
    """It is found again among other things; spaces in a name become underscores."""
    found = Fingerprint.find(f"The docs. {fingerprint} Filled on Monday.")
    assert found == Fingerprint(fingerprint.model.replace(" ", "_"), fingerprint.dimension, fingerprint.normalised)
    assert Fingerprint.find("The docs.") is None


def test_checked() -> None:
    rows = checked([[1, 2], [3, 4]], 2, 2, who="m")
    assert rows.dtype == np.float32
    assert checked(np.empty((0, 2)), 0, 2, who="m").shape == (0, 2)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1, 2]], r"m answered \(1, 2\) where 2 vectors of 2 numbers were due"),
        ([1, 2], r"m answered \(2,\)"),
        ([[1, 2, 3], [1, 2, 3]], "vectors of 3 numbers, and 2 were due: is it another model"),
        ([[1, 2], [np.nan, 2]], r"vector \(number 1\) that contains NaN"),
        ([[1, np.inf], [1, 2]], r"vector \(number 0\) that contains NaN or infinity"),
        ([[1, 2], [1]], "no table of numbers"),
        ([["a", "b"], ["c", "d"]], "no table of numbers"),
        (None, r"m answered \(\)"),
    ],
)
def test_not_checked(vectors: object, message: str) -> None:
    with pytest.raises(EmbeddingError, match=message):
        checked(vectors, 2, 2, who="m")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("hello", r"write embed\(\[text\]\)"),
        (["a", 5], "text number 1 is of type int"),
        ([b"a"], "text number 0 is of type bytes"),
        (["a", "b\ud800"], "text number 1 holds half a character"),
    ],
)
async def test_no_texts(texts: Any, message: str) -> None:
    with pytest.raises(BadQuery, match=message):
        await HashingEmbedder().embed(texts)


def test_texts() -> None:
    assert listed(("a", "🙂é")) == ["a", "🙂é"]


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the model, and what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"'some/model', is not installed: pip install .*\[sentence-transformers\]"):
        SentenceTransformerEmbedder("some/model")


URL = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_urls": []}, "base_urls is empty"),
        ({"base_urls": [None]}, "is no http or https URL"),
        ({"base_urls": "localhost:8080/v1"}, "is no http or https URL"),
        ({"base_urls": "ftp://host/v1"}, "is no http or https URL"),
        ({"base_urls": "http://host:99999/v1"}, "is no http or https URL"),
        ({"base_urls": "http:///v1"}, "is no http or https URL"),
        ({"base_urls": "https://user:sk-secret@host/v1"}, "holds credentials"),
        ({"base_urls": "https://host/v1?key=sk-secret"}, "holds credentials or a query"),
        ({"base_urls": [URL, "http://127.0.0.1:9/other"]}, "names 127.0.0.1:9 twice"),
        ({"model": ""}, "model is empty"),
        ({"dimension": 0}, "dimension must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"max_in_flight": 0}, "max_in_flight must be"),
        ({"max_queue": 0}, "max_queue must be"),
        ({"timeout_s": 0}, "timeout_s must be more than 0"),
        ({"timeout_s": float("nan")}, "timeout_s must be more than 0"),
        ({"api_key_env": "sk-secret"}, "is the name of an environment variable, not a key"),
        ({"api_key_env": "sk_secret"}, "the environment variable named by api_key_env is not set"),
        ({"api_key_env": "BROKEN"}, "the header Authorization has a value that no header may have"),
        ({"headers": {"api-key": "sk-secret\nx: y"}}, "the header api-key has a value that no header may have"),
        ({"headers": {"api-key": "sk-secret-ü"}}, "the header api-key has a value"),
        ({"headers": {"api-key": ""}}, "the header api-key has a value"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is told of at once, and no secret is shown."""
    monkeypatch.setenv("BROKEN", "sk-secret\nmore")
    with pytest.raises(ConfigError, match=message) as caught:
        HTTPEmbedder(**{"base_urls": URL, "model": "m", **arguments})
    assert "secret" not in str(caught.value)


def test_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    embedder = HTTPEmbedder([f"{URL}/", "https://host/v1"], "m", headers={"api-key": "another-secret"})
    assert repr(embedder) == "<HTTPEmbedder m at http://127.0.0.1:9/v1, https://host/v1>"
