"""Whether the servers of one embedder run one model.

Decision made here: the first answer settles model and dimension. Vectors of two models are never mixed: an answer that
differs is a failure of its server, and if that shows while the embedder starts, when it cannot be told which server is
the right one, nothing is answered at all.
"""

from __future__ import annotations

from typing import final

from haclient.errors import EmbeddingError


@final
class Agreement:
    """What the servers say they are.

    Args:
        dimension: Numbers in a vector, if that was asked for; None learns it.

    Attributes:
        odd: Servers that have last answered something else than the first one, and what.
    """

    __slots__ = ("_first", "_model", "dimension", "odd")

    def __init__(self, dimension: int | None) -> None:
        self.dimension = dimension
        self.odd: dict[str, str] = {}
        self._first = ""
        self._model = ""

    def check(self, server: str, model: str, dimension: int) -> None:
        """Compare one answer with the first one.

        Args:
            server: The server's name.
            model: What it says its model is, "" if it does not say.
            dimension: Numbers in its vectors.

        Raises:
            EmbeddingError: It differs.
        """
        if not self._first:
            if self.dimension not in (None, dimension):
                raise EmbeddingError(f"vectors of {dimension} numbers came where {self.dimension} were asked for")
            self._first, self._model, self.dimension = server, model, dimension
        self._model = self._model or model
        if dimension == self.dimension and model in ("", self._model):
            self.odd.pop(server, None)
            return
        self.odd[server] = (
            f"{server} answers as model {model!r} with {dimension} numbers a vector, and {self._first} as "
            f"{self._model!r} with {self.dimension}"
        )
        raise EmbeddingError(self.odd[server])
