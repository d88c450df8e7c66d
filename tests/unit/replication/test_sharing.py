"""Which process applies to which cluster, and how long whoever takes over leaves it alone."""

from __future__ import annotations

import pytest

from haclient.replication.log import Lease
from haclient.replication.position import Position, Standing
from haclient.replication.sharing import wanted


def _positions(**holders: str) -> dict[str, Position]:
    return {cluster: Position(by=holder) for cluster, holder in holders.items()}


def test_who_has_none_may_ask_for_those_of_who_has_several() -> None:
    assert wanted(_positions(a="p", b="p", c="q"), "new") == ["a", "b"]


def test_who_has_one_asks_for_nothing() -> None:
    assert wanted(_positions(a="p", b="p", c="new"), "new") == []


def test_nobody_is_asked_for_the_only_one() -> None:
    assert wanted(_positions(a="p", b="q"), "new") == []


def test_what_is_away_is_of_no_use_to_anybody() -> None:
    positions = _positions(a="p", b="p", c="new")
    positions["c"].standing = Standing.AWAY
    assert wanted(positions, "new") == ["a", "b"]
    positions["b"].standing = Standing.AWAY
    assert wanted(positions, "new") == []


@pytest.mark.parametrize(
    ("orphaned", "epoch", "rest_s"),
    [(True, 7, 0.5), (False, 7, 5.0), (True, 6, 5.0)],
    ids=["of the dead", "perhaps of a stopped one", "of somebody before the dead"],
)
def test_only_what_the_dead_itself_waited_for_is_gone_with_it(orphaned: bool, epoch: int, rest_s: float) -> None:
    position = Position(open=5.0, left=0.5, epoch=epoch)
    assert position.inherited_s(Lease("apply/a", 8, 0.0, orphaned)) == rest_s


def test_a_position_written_before_says_that_all_of_it_is_left() -> None:
    value = Position(open=5.0).encode().replace(b'"left":0.0,', b"").replace(b'"by":"",', b"")
    assert Position.decode(value).left == 5.0
