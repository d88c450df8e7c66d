"""What a series of trials says, in plain language.

Decision made here: a sentence says only what was counted. Where something failed, it says how much, in how many of the
trials, and for how long; what was not looked at is said to be so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from haclient.drill.figures import Side, longest
from haclient.drill.intervals import spread, upper_bound
from haclient.drill.series import Series

#: Reasons of broken trials that are told at length.
_TOLD = 3


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
    """Write a share, rounded down so that only 1 is 100 %, with as many digits as there are nines to tell apart."""
    if share is None:
        return "–"
    digits = 1 if share < 0.99 else 3
    text = f"{math.floor(round(share * 10 ** (digits + 2), 6)) / 10**digits:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.')} %"


def rate(bound: float) -> str:
    """Write the upper bound of a rate."""
    return f"{bound * 100:.1f} %"


def many(number: int, one: str, more: str = "") -> str:
    """Write a number of things."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def tell(seen: Series) -> str:
    """Say in a few sentences what a series of trials showed."""
    if not seen.trials:
        return " ".join(["No trial was carried out, so nothing was shown.", *_broken(seen)])
    parts = ["; ".join(part) for part in (_side(seen, "reads"), _side(seen, "writes"), _loss(seen))]
    first, *others = [part for part in parts if part]
    told = [f"In {many(len(seen.trials), 'trial')}, {first}.", *(f"{part[0].upper()}{part[1:]}." for part in others)]
    return " ".join([*told, *_noticed(seen), *_sureness(seen), *_broken(seen)])


def _side(seen: Series, side: Side) -> Iterator[str]:
    """Say how reads or writes fared; nothing if there were none."""
    trials = [trial for trial in seen.trials if trial.calls(side)]
    if not trials:
        return
    hit = [trial for trial in trials if trial.failed[side]]
    if hit:
        failed, calls = sum(trial.failed[side] for trial in hit), sum(trial.calls(side) for trial in trials)
        what = {"reads": "failed or were wrong", "writes": "failed or were not confirmed"}[side]
        yield f"{failed:,} of {many(calls, side[:-1])} {what}{_share(len(hit), len(trials))}"
        yield from _back(seen, side)
    else:
        yield f"no {side[:-1]} failed"
        slowest = [slow for trial in trials if (slow := trial.slowest_s(side)) is not None]
        if slowest:
            yield f"the slowest was {'answered' if side == 'reads' else 'confirmed'} after {seconds(max(slowest))}"
    if side == "reads":
        if wrong := sum(trial.wrong for trial in trials):
            yield f"{many(wrong, 'answer was', 'answers were')} wrong"
        if stale := sum(trial.stale for trial in trials):
            yield f"{many(stale, 'answer was', 'answers were')} older than promised"


def _share(some: int, of: int) -> str:
    if of == 1:
        return ""
    return f", in {'all' if some == of else f'{some:,}'} of them"


def _back(seen: Series, side: Side) -> Iterator[str]:
    times = [trial.rto_s(side) for trial in seen.trials if trial.faults]
    if never := sum(time is None for time in times):
        yield f"{side} had not come back for good when the load ended{_share(never, len(times))}"
    elif times:
        yield f"{side} went on after at most {seconds(longest(times))}"


def _loss(seen: Series) -> Iterator[str]:
    writers = [trial for trial in seen.trials if trial.calls("writes")]
    audits = [trial.audit for trial in writers if trial.audit is not None]
    lost = sum(trial.lost or 0 for trial in writers)
    acknowledged = many(sum(audit.acknowledged for audit in audits), "acknowledged write")
    if lost:
        yield f"{lost:,} of {acknowledged} {'was' if lost == 1 else 'were'} lost"
    elif audits:
        yield f"of {acknowledged} none was lost"
    if missing := len(writers) - len(audits):
        yield f"what became of the writes was not looked at{_share(missing, len(writers))}"
    if twice := sum(audit.duplicates for audit in audits):
        yield f"{many(twice, 'key was', 'keys were')} there twice"
    if differing := sum(audit.differing for audit in audits):
        yield f"{many(differing, 'key was', 'keys were')} not the same on every cluster in the end"
    elif any(audit.caught_up_s is None for audit in audits):
        yield "the clusters were not seen to be the same in the end"


def _noticed(seen: Series) -> Iterator[str]:
    times = [fault.detection_s for trial in seen.trials for fault in trial.faults]
    found = spread(times)
    if found is None:
        return
    if missed := sum(time is None for time in times):
        which = "the fault" if found.n == 1 else f"{missed:,} of {found.n:,} faults"
        yield f"haclient said nothing of {which}."
    elif found.n == 1:
        yield f"The fault was noticed after {seconds(found.median)}."
    else:
        yield f"Half of the faults were noticed within {seconds(found.median)}, all within {seconds(found.worst)}."


def _sureness(seen: Series) -> Iterator[str]:
    """Say what so many trials without a failed read allow to be said of the next one."""
    trials = [trial for trial in seen.trials if trial.calls("reads")]
    if trials and not any(trial.failed["reads"] for trial in trials):
        yield f"With 95 % confidence fewer than {rate(upper_bound(0, len(trials)))} of such events fail a read."


def _broken(seen: Series) -> Iterator[str]:
    if not seen.broken:
        return
    reasons = "; ".join(f"seed {one.seed}: {one.reason}" for one in seen.broken[:_TOLD])
    more = f"; and {len(seen.broken) - _TOLD:,} more" if len(seen.broken) > _TOLD else ""
    prove = "proves" if len(seen.broken) == 1 else "prove"
    yield f"{many(len(seen.broken), 'trial')} could not be carried out and {prove} nothing ({reasons}{more})."
