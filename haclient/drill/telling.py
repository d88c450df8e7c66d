"""What a series of trials says, in plain language.

Decision made here: a sentence says only what was counted. Where something failed, it says how much, in how many of the
trials, and for how long; what was not looked at is said to be so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from typing import Final

from haclient.drill.figures import Side
from haclient.drill.intervals import spread, upper_bound
from haclient.drill.series import Series

#: Reasons of broken trials that are told at length.
_TOLD: Final = 3


def seconds(time: float | None) -> str:
    """Write a time for a person: two digits, or "never"."""
    if time is None or math.isinf(time):
        return "never"
    if time == 0:
        return "0 s"
    if time < 0.0995:
        return f"{time * 1e3:.1f} ms" if time < 0.00995 else f"{time * 1e3:.0f} ms"
    return f"{time:.2f} s" if time < 0.995 else f"{time:.1f} s"


def percent(share: float | None) -> str:
    """Write a share so that only 1 is 100 %."""
    if share is None:
        return "–"
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    text = f"{math.floor(share * 1e5) / 1e3:.3f}".rstrip("0").rstrip(".")
    return f"{text} %"


def many(number: int, one: str, more: str = "") -> str:
    """Write a number of things."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def tell(seen: Series) -> str:
    """Say in a few sentences what a series of trials showed."""
    if not seen.trials:
        return " ".join(["No trial was carried out, so nothing was shown.", *_broken(seen)])
    parts = [*_side(seen, "reads"), *_side(seen, "writes"), *_loss(seen)]
    first = f"In {many(len(seen.trials), 'trial')} of “{seen.scenario.title}”: {'; '.join(parts)}."
    return " ".join([first, *_noticed(seen), *_sureness(seen), *_broken(seen)])


def _side(seen: Series, side: Side) -> Iterator[str]:
    """Say how reads or writes fared; nothing if there were none."""
    trials = [trial for trial in seen.trials if trial.calls(side)]
    if not trials:
        return
    hit = [trial for trial in trials if trial.failed[side]]
    if hit:
        failed = sum(trial.failed[side] for trial in hit)
        what = {"reads": "failed or were wrong", "writes": "failed or were not confirmed"}[side]
        yield f"{failed:,} of {many(sum(t.calls(side) for t in trials), side[:-1])} {what}, in {_of(hit, trials)}"
        yield from _back(seen, side)
    else:
        yield f"no {side[:-1]} failed"
        slowest = [slow for trial in trials if (slow := trial.slowest_s(side)) is not None]
        done = {"reads": "answered", "writes": "confirmed"}[side]
        yield f"the slowest was {done} after {seconds(max(slowest))}"
    if side == "reads":
        if wrong := sum(trial.wrong for trial in trials):
            yield f"{many(wrong, 'answer was', 'answers were')} wrong"
        if stale := sum(trial.stale for trial in trials):
            yield f"{many(stale, 'answer was', 'answers were')} older than promised"


def _back(seen: Series, side: Side) -> Iterator[str]:
    times = [trial.rto_s(side) for trial in seen.trials if trial.faults]
    never = sum(time is None for time in times)
    if never:
        yield f"{side} had not come back for good when the load ended in {never:,} of {many(len(times), 'trial')}"
    elif times:
        yield f"{side} went on after at most {seconds(max(time or 0.0 for time in times))}"


def _loss(seen: Series) -> Iterator[str]:
    writers = [trial for trial in seen.trials if trial.calls("writes")]
    if not writers:
        return
    audits = [trial.audit for trial in writers if trial.audit is not None]
    lost = sum(trial.lost or 0 for trial in writers)
    acknowledged = sum(audit.acknowledged for audit in audits)
    if lost:
        yield f"{lost:,} of {many(acknowledged, 'acknowledged write')} {'was' if lost == 1 else 'were'} lost"
    elif audits:
        yield f"nothing of {many(acknowledged, 'acknowledged write')} was lost"
    if len(audits) < len(writers):
        yield f"what became of the writes was not looked at in {len(writers) - len(audits):,} of them"
    if twice := sum(audit.duplicates for audit in audits):
        yield f"{many(twice, 'key was', 'keys were')} there twice"
    if differing := sum(audit.differing for audit in audits):
        yield f"{many(differing, 'key was', 'keys were')} not the same on every cluster in the end"


def _noticed(seen: Series) -> Iterator[str]:
    found = spread(fault.detection_s for trial in seen.trials for fault in trial.faults)
    if found is None:
        return
    if math.isinf(found.median):
        missed = sum(fault.detection_s is None for trial in seen.trials for fault in trial.faults)
        yield f"{missed:,} of {many(found.n, 'fault')} went unnoticed."
    elif found.n == 1:
        yield f"The fault was noticed after {seconds(found.median)}."
    else:
        last = "one was never" if math.isinf(found.worst) else f"the last after {seconds(found.worst)}"
        yield f"Half of the faults were noticed within {seconds(found.median)}, {last}."


def _sureness(seen: Series) -> Iterator[str]:
    """Say what the number of trials allows to be said of reads."""
    trials = [trial for trial in seen.trials if trial.calls("reads")]
    hit = sum(bool(trial.failed["reads"]) for trial in trials)
    if hit < len(trials):
        bound = upper_bound(hit, len(trials))
        yield f"With 95 % confidence a read fails in fewer than {bound:.1%}".replace("%", " %") + " of such events."


def _broken(seen: Series) -> Iterator[str]:
    if not seen.broken:
        return
    reasons = "; ".join(f"seed {one.seed}: {one.reason}" for one in seen.broken[:_TOLD])
    more = f"; and {len(seen.broken) - _TOLD:,} more" if len(seen.broken) > _TOLD else ""
    prove = "proves" if len(seen.broken) == 1 else "prove"
    yield f"{many(len(seen.broken), 'trial')} could not be carried out and {prove} nothing ({reasons}{more})."


def _of(some: Sized, all_of_them: Sized) -> str:
    return f"{len(some):,} of {many(len(all_of_them), 'trial')}"
