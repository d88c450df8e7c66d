"""Verdicts: what is kept, what is not, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from haclient.drill.record import Audit, Trial
from haclient.drill.telling import percent, seconds
from haclient.drill.verdict import Finding, Verdict, judge
from tests.made_up_trials import hedged, outage, scenario, trial

#: A trial that keeps everything.
FINE = trial(3)


def missed(verdict: Verdict) -> list[tuple[str, str, int | None]]:
    return [(one.name, one.seen, one.seed) for one in verdict.findings if not one.kept]


def test_kept() -> None:
    """Fifty-nine clean trials keep everything, and are told in a few sentences."""
    verdict = judge(scenario(availability=1.0), [trial(seed, hedged) for seed in range(59)])
    assert verdict.kept
    assert not missed(verdict)
    assert len(verdict.findings) == 11
    assert verdict.findings[0] == Finding("trials carried out", "all 59", "59", None, kept=True)
    assert verdict.sentences == (
        "In 59 trials, no read failed; the slowest was answered after 0.31 s. "
        "No write failed; the slowest was confirmed after 0.69 s. "
        "Of 9,427 acknowledged writes none was lost. "
        "Half of the faults were noticed within 0.25 s, all within 0.63 s. "
        "With 95 % confidence fewer than 5.0 % of such events fail a read."
    )


def test_worst_trial_decides() -> None:
    """One bad trial among good ones is enough, and its seed is named."""
    bad = trial(9, outage(1.5))
    verdict = judge(scenario(), [FINE, bad, trial(4)])
    assert [name for name, _, _ in missed(verdict)] == ["failed or wrong reads", "reads back after a fault"]
    assert {seed for _, _, seed in missed(verdict)} == {9}
    assert verdict.findings[0].name == "failed or wrong reads"  # what was not kept comes first
    assert "reads failed or were wrong, in 1 of them; reads went on after at most 1.5 s" in verdict.sentences
    assert "confidence" not in verdict.sentences


def test_limits() -> None:
    """What a scenario allows is no failure, and what it does not ask is not judged."""
    bad = trial(9, outage(1.5))
    allowing = scenario(failed_reads=1000, read_rto_s=1.6, write_rto_s=None, failed_writes=None)
    verdict = judge(allowing, [bad])
    assert verdict.kept
    assert "writes back after a fault" not in {one.name for one in verdict.findings}
    wanted = {one.name: one.wanted for one in verdict.findings}
    assert (wanted["failed or wrong reads"], wanted["reads back after a fault"]) == ("at most 1000", "within 1.6 s")
    assert missed(judge(scenario(failed_reads=None, read_rto_s=None, failed_writes=0), [bad]))[0][0] == (
        "failed or unconfirmed writes"
    )
    (share,) = missed(judge(scenario(failed_reads=None, read_rto_s=None, availability=0.99), [bad]))
    assert (share[0], share[2]) == ("availability", 9)


@pytest.mark.parametrize(
    ("audit", "name", "told"),
    [
        (Audit(acknowledged=10, lost=1), "acknowledged writes lost", "1 of 10 acknowledged writes was lost"),
        (Audit(acknowledged=10, resurrected=2), "acknowledged writes lost", "2 of 10 acknowledged writes were lost"),
        (Audit(acknowledged=10, duplicates=1), "keys there twice", "1 key was there twice"),
        (Audit(acknowledged=10, differing=2), "keys that differ between clusters", "2 keys were not the same"),
        (Audit(acknowledged=10, caught_up_s=None), "clusters the same in the end", "were not seen to be the same"),
    ],
)
def test_audit(audit: Audit, name: str, told: str) -> None:
    """Whatever is wrong in the end is found and said, in one trial of three."""
    nothing = replace(FINE, audit=Audit())
    verdict = judge(scenario(), [nothing, replace(FINE, seed=8, audit=audit), nothing])
    assert [(found, seed) for found, _, seed in missed(verdict)] == [(name, 8)]
    assert told in verdict.sentences


def test_not_looked_at() -> None:
    """Writes that nobody looked for are no success; where nothing was written, there is nothing to look for."""
    blind = replace(FINE, audit=None)
    verdict = judge(scenario(), [FINE, blind])
    assert ("acknowledged writes lost", "not looked at", 3) in missed(verdict)
    assert "what became of the writes was not looked at, in 1 of them" in verdict.sentences
    reads = [call for call in FINE.operations if call.kind in ("search", "query")]
    reading = judge(scenario(), [replace(blind, operations=reads)])
    assert reading.kept
    assert "write" not in reading.sentences


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (replace(FINE, seed=5, error="etcd did not start"), "etcd did not start"),
        (replace(FINE, seed=5, operations=[]), "no call was made"),
        (replace(FINE, seed=5, faults=[]), "0 of 1 faults happened"),
    ],
)
def test_broken(broken: Trial, reason: str) -> None:
    """A trial that proves nothing is never kept, whatever its figures would be, and is told."""
    mixed = judge(scenario(), [FINE, broken])
    assert missed(mixed) == [("trials carried out", "1", 5)]
    assert mixed.sentences.endswith(f"1 trial could not be carried out and proves nothing (seed 5: {reason}).")
    assert len(mixed.series.trials) == len(mixed.series.recorded) == 1
    alone = judge(scenario(), [broken] * 5)
    assert not alone.kept
    assert [one.name for one in alone.findings] == ["trials carried out"]
    assert alone.sentences.startswith("No trial was carried out, so nothing was shown. 5 trials could not")
    assert alone.sentences.endswith("; and 2 more).")


def test_no_trials() -> None:
    """Nothing run is nothing shown."""
    verdict = judge(scenario(), [])
    assert not verdict.kept
    assert verdict.sentences == "No trial was carried out, so nothing was shown."


def test_without_faults() -> None:
    """A scenario that hurts nobody is judged by its calls alone."""
    calm = trial(2, faults=0)
    verdict = judge(scenario(faults=0, availability=1.0), [calm])
    assert verdict.kept
    assert "noticed" not in verdict.sentences
    assert [times.name for times in verdict.series.times()][:2] == ["Slowest read", "Slowest write"]


def test_never_back() -> None:
    """What does not come back is said so, and no fault that nobody noticed is called noticed."""
    verdict = judge(scenario(), [trial(1, outage(60), lasts=None, noticed=False)])
    assert ("reads back after a fault", "never", 1) in missed(verdict)
    assert "reads had not come back for good when the load ended." in verdict.sentences
    assert "haclient said nothing of the fault." in verdict.sentences
    assert "confidence" not in verdict.sentences


def test_worst() -> None:
    """The trial to look at is the one that hurt most; of clean ones the slowest."""
    series = judge(scenario(), [FINE, trial(9, outage(1.5)), trial(8, outage(0.5))]).series
    assert series.worst() == 1
    assert judge(scenario(), [trial(7, faults=1), trial(6, hedged)]).series.worst() == 1
    assert judge(scenario(), []).series.worst() is None


@pytest.mark.parametrize(
    ("time", "told"),
    [(0, "0 s"), (0.0042, "4.2 ms"), (0.0099, "9.9 ms"), (0.00999, "10 ms"), (0.042, "42 ms"), (0.0996, "0.10 s"),
     (0.314, "0.31 s"), (0.999, "1.0 s"), (12.34, "12.3 s"), (None, "never"), (float("inf"), "never")],
)  # fmt: skip
def test_seconds(time: float | None, told: str) -> None:
    assert seconds(time) == told


@pytest.mark.parametrize(
    ("share", "told"),
    [(1, "100 %"), (0, "0 %"), (0.999, "99.9 %"), (0.99999, "99.999 %"), (0.9999999, "99.999 %"), (0.95, "95 %"),
     (0.93956, "93.9 %"), (None, "–")],
)  # fmt: skip
def test_percent(share: float | None, told: str) -> None:
    """Never rounded up to all, and 99.9 % stays 99.9 %."""
    assert percent(share) == told
