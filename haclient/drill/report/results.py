"""What a run of drills leaves behind, and its file.

Decision made here: the file holds the plain facts of every trial, and beside them what was made of them for whoever
reads it with other tools. Only the facts are read back.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Self, final

import orjson

from haclient.drill.record import Trial
from haclient.drill.scenario import Scenario
from haclient.drill.verdict import Verdict, judge
from haclient.errors import ConfigError

#: Version of the file's format.
_FORMAT: Final = 1


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What was run, and where.

    Attributes:
        engine: What the clusters were, with its version.
        started: When, ISO 8601 with its zone.
        haclient: Its version.
        python: Its version.
        machine: System, processor and number of cores.
    """

    engine: str
    started: str
    haclient: str
    python: str
    machine: str

    @classmethod
    def here(cls, engine: str) -> Self:
        """Describe a run that starts now, on this machine."""
        return cls(
            engine=engine,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            haclient=version("haclient"),
            python=platform.python_version(),
            machine=f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores",
        )


@final
@dataclass(frozen=True, slots=True)
class Result:
    """One scenario and its trials, in the order they ran."""

    scenario: Scenario
    trials: list[Trial]

    def verdict(self) -> Verdict:
        """Judge it."""
        return judge(self.scenario, self.trials)


@final
@dataclass(frozen=True, slots=True)
class Results:
    """A run of drills.

    Attributes:
        about: What was run.
        results: In the order they ran.
    """

    about: About
    results: list[Result] = field(default_factory=list)

    def verdicts(self) -> list[Verdict]:
        """Judge every scenario."""
        return [result.verdict() for result in self.results]


def write_json(path: Path, results: Results) -> None:
    """Write everything to a file."""
    path.write_bytes(orjson.dumps(as_json(results), option=orjson.OPT_APPEND_NEWLINE))


def as_json(results: Results) -> dict[str, Any]:
    """Return everything for a JSON encoder; infinite times become null."""
    verdicts = results.verdicts()
    return {
        "format": _FORMAT,
        "about": asdict(results.about),
        "kept": bool(verdicts) and all(verdict.kept for verdict in verdicts),
        "results": [
            {
                "scenario": result.scenario.model_dump(mode="json"),
                "verdict": {
                    "kept": verdict.kept,
                    "sentences": verdict.sentences,
                    "findings": [asdict(finding) for finding in verdict.findings],
                },
                "figures": verdict.series.trials,
                "trials": result.trials,
            }
            for result, verdict in zip(results.results, verdicts, strict=True)
        ],
    }


def read_json(path: Path) -> Results:
    """Read what `write_json` wrote.

    Raises:
        ConfigError: The file cannot be read, or was not written by `write_json`.
    """
    try:
        value = orjson.loads(path.read_bytes())
        if value["format"] != _FORMAT:
            raise ConfigError(f"results {path}: format {value['format']}; this version of haclient reads {_FORMAT}")
        return Results(
            About(**value["about"]),
            [
                Result(Scenario.model_validate(one["scenario"]), [Trial.from_json(trial) for trial in one["trials"]])
                for one in value["results"]
            ],
        )
    except OSError as error:
        raise ConfigError(f"results {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"results {path}: not a file of results ({type(error).__name__}: {error})") from error
