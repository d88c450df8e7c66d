"""JUnit: one suite, one case per scenario.

Decision made here: an expectation that was not kept is a failure; a scenario that shows nothing, because trials could
not be carried out, is an error.
"""

from __future__ import annotations

from pathlib import Path

from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite
from junitparser.junitparser import FinalResult

from haclient.drill.report.results import Results
from haclient.drill.verdict import Verdict
from haclient.replication_table import plain_lines


def write_junit(path: Path, results: Results) -> None:
    """Write the verdicts for a CI system."""
    suite = TestSuite("haclient drill")
    suite.timestamp = results.about.started
    for name in ("engine", "haclient", "python", "machine"):
        suite.add_property(name, _text(getattr(results.about, name)))
    for result, verdict in zip(results.results, results.verdicts(), strict=True):
        seconds = sum(trial.seconds for trial in result.trials)
        case = TestCase(_text(result.scenario.name), "haclient.drill", seconds)
        case.result = _outcome(verdict)
        case.system_out = _text(verdict.sentences)
        suite.add_testcase(case)
    report = JUnitXml("haclient drill")
    report.add_testsuite(suite)
    report.update_statistics()  # type: ignore[no-untyped-call]
    report.write(str(path), pretty=True)


def _outcome(verdict: Verdict) -> list[FinalResult]:
    missed = [finding for finding in verdict.findings if not finding.kept]
    if not missed:
        return []
    kind = Error if verdict.series.broken or not verdict.series.trials else Failure
    lines = [
        f"{f.name}: wanted {f.wanted}, seen {f.seen}" + (f" (seed {f.seed})" if f.seed is not None else "")
        for f in missed
    ]
    outcome = kind(_text(lines[0]))
    outcome.text = _text("\n".join([*lines, "", verdict.sentences]))
    return [outcome]


def _text(text: str) -> str:
    """Leave out what no XML may hold, such as control characters in a server's message."""
    return plain_lines(text).plain
