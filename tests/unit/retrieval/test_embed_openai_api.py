"""Requests and answers of ``/v1/embeddings``, and whether servers agree."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from haclient.errors import EmbeddingError
from haclient.retrieval.embed.agreement import Agreement
from haclient.retrieval.embed.openai_api import count_texts, read_answer, read_refusal, write_request
from tests.servers.embedding_server import GARBAGE

ROWS = np.asarray([[1.0, 0.0, 0.5], [0.0, -2.0, 0.25]], np.float32)


def answer(**more: Any) -> dict[str, Any]:
    data = [{"index": i, "embedding": row.tolist()} for i, row in enumerate(ROWS)]
    return {"model": "m", "data": data, **more}


def test_request() -> None:
    request = write_request("m", ["one", "zwölf 🙂"], None)
    assert json.loads(request) == {"model": "m", "input": ["one", "zwölf 🙂"], "encoding_format": "base64"}
    assert count_texts(request) == 2
    assert json.loads(write_request("m", ["one"], 256))["dimensions"] == 256


@pytest.mark.parametrize("packed", [False, True])
def test_answer(packed: bool) -> None:
    """Numbers and base64 are understood, in any order; the index tells, or else the position."""
    whole = answer()
    if packed:
        for item, vector in zip(whole["data"], ROWS, strict=True):
            item["embedding"] = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    for data in (whole["data"], whole["data"][::-1], [{"embedding": d["embedding"]} for d in whole["data"]]):
        rows, model = read_answer(json.dumps(whole | {"data": data}).encode(), 2)
        assert np.array_equal(rows, ROWS)
        assert rows.dtype == np.float32
        assert model == "m"
    assert read_answer(json.dumps({"data": whole["data"], "model": None}).encode(), 2)[1] == ""


@pytest.mark.parametrize("kind", sorted(GARBAGE.keys() - {"wrong model", "wrong length"}))
def test_garbage(kind: str) -> None:
    """What is not whole is refused; a wrong model or length shows only beside another answer."""
    with pytest.raises(EmbeddingError):
        read_answer(json.dumps(GARBAGE[kind](answer())).encode(), 2)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"\xff\xfe",
        b'{"data": [1, 2]}',
        b'{"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}]}',
        b'{"data": [{"index": 0, "embedding": [1]}, {"index": [1], "embedding": [1]}]}',
        b'{"data": [{"index": 0, "embedding": [1, 2]}, {"index": 1, "embedding": [1]}]}',
        b'{"data": [{"index": 0, "embedding": [[1]]}, {"index": 1, "embedding": [[1]]}]}',
        b'{"data": [{"index": 0, "embedding": ["x"]}, {"index": 1, "embedding": ["y"]}]}',
        b'{"data": [{"index": 0, "embedding": "AAA="}, {"index": 1, "embedding": "AAA="}]}',
        b'{"data": [{"index": 0, "embedding": 1}, {"index": 1, "embedding": 2}]}',
        b'{"data": [{"index": 0, "embedding": [1e300]}, {"index": 1, "embedding": [1]}]}',
    ],
)
@pytest.mark.filterwarnings("error")
def test_more_garbage(body: bytes) -> None:
    with pytest.raises(EmbeddingError):
        read_answer(body, 2)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": {"message": "too long", "type": "x"}}', "too long"),
        (b'{"error": "too long"}', "too long"),
        (b'{"message": "too long"}', "too long"),
        (b'{"detail": [{"loc": 1}]}', '{"detail": [{"loc": 1}]}'),
        (b'{"object": "error"}', '{"object": "error"}'),
        (b"<html>\n  Bad   Gateway</html>", "<html> Bad Gateway</html>"),
        (b"\xff" * 1000, "\N{REPLACEMENT CHARACTER}" * 1000),
        (b"", ""),
    ],
)
def test_refusal(body: bytes, text: str) -> None:
    assert read_refusal(body) == text


class TestAgreement:
    def test_the_first_answer_settles_it(self) -> None:
        agreement = Agreement(None)
        agreement.check("a", "m", 3)
        agreement.check("b", "m", 3)
        agreement.check("b", "", 3)
        assert (agreement.dimension, agreement.odd) == (3, {})

    @pytest.mark.parametrize(("model", "dimension"), [("n", 3), ("m", 4)])
    def test_another_is_odd_until_it_agrees(self, model: str, dimension: int) -> None:
        agreement = Agreement(None)
        agreement.check("a", "m", 3)
        with pytest.raises(
            EmbeddingError, match=f"b answers as model '{model}' with {dimension} .* and a as 'm' with 3"
        ):
            agreement.check("b", model, dimension)
        assert list(agreement.odd) == ["b"]
        agreement.check("b", "m", 3)
        assert not agreement.odd

    def test_a_dimension_asked_for(self) -> None:
        agreement = Agreement(3)
        with pytest.raises(EmbeddingError, match="vectors of 4 numbers came where 3 were asked for"):
            agreement.check("a", "m", 4)
        assert not agreement.odd, "which of them is right is known"
        agreement.check("b", "m", 3)

    def test_a_name_told_later_counts(self) -> None:
        agreement = Agreement(None)
        agreement.check("a", "", 3)
        agreement.check("b", "m", 3)
        with pytest.raises(EmbeddingError):
            agreement.check("c", "n", 3)
