"""From sources to the chunks that are embedded.

Decision made here: a chunk's id is the hash of all that its row says (source, text, metadata) and of nothing else, not
its place in the source. So the same chunk has the same id in every run and on every machine, a chunk is as it should
be if its id is there, and a paragraph put in at the top leaves the chunks below it alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

from haclient.errors import ConfigError, HAClientError

#: Cuts a text into pieces. A chunk is found as a whole and shown as a whole, so a piece should make sense by itself.
Splitter = Callable[[str], Iterable[str]]

#: Characters of a chunk of the default splitter; the usual small models read about as much and ignore the rest.
_CHARACTERS = 1000
#: The fields of a collection.
ID: Final = "id"
TEXT: Final = "text"
SOURCE: Final = "source"
VECTOR: Final = "vector"
SPARSE: Final = "sparse"
_FIELDS = frozenset({ID, TEXT, SOURCE, VECTOR, SPARSE, "$meta"})
_ID_BYTES = 16
#: Hexadecimal digits in a chunk's id.
ID_LENGTH: Final = 2 * _ID_BYTES
#: Bytes of a source's id; Milvus counts bytes, not characters.
SOURCE_BYTES: Final = 1024
#: Milvus' limit for the fields that are not in the schema, as JSON.
_METADATA_BYTES = 65536


class BadSource(HAClientError, ValueError):
    """A source cannot be indexed; the message names it and says why."""


@final
@dataclass(frozen=True, slots=True)
class Source:
    """One document to be indexed.

    Attributes:
        id: Its name, unique in the collection: a path, a URL, a key; at most 1024 bytes.
        text: The whole text.
        metadata: What every chunk of it carries, to filter by and to show; JSON values. A change makes every chunk a
            new one, so what differs from run to run (when it was read) does not belong here.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a source; a row without its vector."""

    id: str
    text: str
    source: str
    metadata: Mapping[str, Any]


def default_splitter(characters: int = _CHARACTERS) -> Splitter:
    """Return a splitter that cuts at paragraphs, else sentences, else words, so that no chunk is longer.

    Raises:
        ConfigError: The package semantic-text-splitter is not installed, or ``characters`` is not positive.
    """
    if characters < 1:
        raise ConfigError(f"a chunk has at least 1 character, got {characters}; write for example {_CHARACTERS}")
    try:
        from semantic_text_splitter import TextSplitter  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            "no text splitter is installed: pip install 'haclient[ingest]', or give splitter=, a function from a text "
            "to its pieces"
        ) from error
    splitter: Splitter = TextSplitter(characters).chunks
    return splitter


def cut(source: Source, splitter: Splitter, text_bytes: int) -> list[Chunk]:
    """Return a source's chunks; a text that occurs twice in it is one chunk.

    Args:
        source: What to cut.
        splitter: How to.
        text_bytes: Bytes that a chunk's text may have.

    Raises:
        BadSource: It cannot be indexed.
    """
    metadata = _checked_metadata(source)
    pieces = [piece for piece in splitter(source.text) if piece.strip()]
    if not pieces:
        raise BadSource(f"source {source.id!r} has no text; to take a source out, call remove()")
    chunks = {}
    for piece in pieces:
        size = len(_encoded(source, piece))
        if size > text_bytes:
            raise BadSource(
                f"source {source.id!r}: a chunk has {size} bytes, and the collection takes {text_bytes}; cut it into "
                f"smaller chunks (it begins {piece[:40]!r})"
            )
        said = f"{json.dumps([source.id, piece], ensure_ascii=False)}{metadata}"
        number = hashlib.blake2b(said.encode(), digest_size=_ID_BYTES).hexdigest()
        chunks[number] = Chunk(number, piece, source.id, source.metadata)
    return list(chunks.values())


def _checked_metadata(source: Source) -> str:
    """Return the metadata in its one JSON form."""
    if not source.id.strip() or any(ord(letter) < ord(" ") for letter in source.id):
        raise BadSource(f"a source's id must be a name without control characters, got {source.id!r}")
    if len(_encoded(source, source.id)) > SOURCE_BYTES:
        raise BadSource(f"source {source.id[:40]!r}...: its id has more than {SOURCE_BYTES} bytes")
    if taken := sorted(_FIELDS & source.metadata.keys()):
        raise BadSource(
            f"source {source.id!r}: metadata cannot be called {', '.join(taken)}, as the collection's own fields are"
        )
    if odd := [name for name in source.metadata if not isinstance(name, str)]:
        raise BadSource(f"source {source.id!r}: names of metadata are text, got {odd[0]!r}")
    try:
        form = json.dumps(dict(source.metadata), sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadSource(f"source {source.id!r}: its metadata is no JSON: {error}") from None
    if len(_encoded(source, form)) > _METADATA_BYTES:
        raise BadSource(f"source {source.id!r}: its metadata has more than {_METADATA_BYTES} bytes as JSON")
    return form


def _encoded(source: Source, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadSource(f"source {source.id!r}: its text cannot be written as UTF-8: {error}") from None
