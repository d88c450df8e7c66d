"""Cutting texts: the default splitter, and ids that depend on content alone."""

from __future__ import annotations

import sys

import pytest

from haclient.errors import ConfigError
from haclient.retrieval.chunks import Source, cut, default_splitter


def test_an_id_is_the_same_on_every_machine() -> None:
    [chunk] = cut(Source("a", "text", {"b": 1, "a": "ä"}), str.splitlines, 100)
    assert chunk.id == "44bc99b827bd7fc74ad741245b52665b"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Source("a", "text"), Source("b", "text")),
        (Source("a", "text"), Source("a", "text ")),
        (Source("a", "text"), Source("a", "text", {"x": 1})),
        (Source("a", "text", {"x": 1}), Source("a", "text", {"x": "1"})),
        (Source('a", "b', "c"), Source("a", 'b", "c')),
    ],
)
def test_whatever_a_row_says_is_in_its_id(one: Source, other: Source) -> None:
    [first] = cut(one, lambda text: [text], 100)
    [second] = cut(other, lambda text: [text], 100)
    assert first.id != second.id


def test_blank_pieces_are_left_out() -> None:
    assert [chunk.text for chunk in cut(Source("a", "x"), lambda _: ["", " ", "x", "\n"], 100)] == ["x"]


def test_the_default_splitter_cuts_at_paragraphs_and_keeps_every_word() -> None:
    paragraphs = [f"Paragraph {i}. " + "It has some words. " * 12 for i in range(20)]
    pieces = list(default_splitter()("\n\n".join(paragraphs)))
    assert all(len(piece) <= 1000 for piece in pieces)
    assert all(piece.startswith("Paragraph") for piece in pieces)
    assert " ".join(pieces).split() == " ".join(paragraphs).split()


def test_a_word_that_is_too_long_is_cut() -> None:
    assert [len(piece) for piece in default_splitter(10)("x" * 25)] == [10, 10, 5]


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "semantic_text_splitter", None)
    with pytest.raises(ConfigError, match=r"pip install 'haclient\[ingest\]'"):
        default_splitter()


def test_a_chunk_has_at_least_one_character() -> None:
    with pytest.raises(ConfigError, match="at least 1 character"):
        default_splitter(0)
