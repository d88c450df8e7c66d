"""What is checked before rows are written.

Decision made here: what cannot be kept as it is given is refused, rather than dropped, overwritten or written twice.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def whole_ids(ids: Sequence[str | None] | None, count: int) -> list[str]:
    """Return an id for each text, made where none is given.

    Raises:
        ValueError: They are too many or too few, or one is given twice.
        TypeError: One is no text.
    """
    given = [None] * count if ids is None else list(ids)
    if len(given) != count:
        raise ValueError(f"{len(given)} ids for {count} texts; give each text one, or None")
    made = [str(uuid.uuid4()) if one is None else one for one in given]
    for one, times in Counter(made).most_common():
        if not isinstance(one, str):
            raise TypeError(f"ids are texts, got {one!r}; write {str(one)!r}")
        if times > 1:
            raise ValueError(f"the id {one!r} is given to {times} texts; one id is one row")
    return made


def check_metadata(metadatas: Sequence[Mapping[str, Any]] | None, count: int, fields: set[str]) -> None:
    """Refuse metadata that does not go with the texts, or with the collection's own fields.

    Raises:
        ValueError: They are too many or too few, or one has a key that is a field's name.
    """
    if metadatas is None:
        return
    if len(metadatas) != count:
        raise ValueError(f"{len(metadatas)} metadatas for {count} texts; give each text one, {{}} if it has none")
    for metadata in metadatas:
        if taken := fields & metadata.keys():
            raise ValueError(
                f"metadata has a key {min(taken)!r}, which is the name of one of the collection's own fields; give it "
                "another name, or the field (primary_field, text_field, vector_field)"
            )
