"""An objective as rules for Prometheus, over haclient's own metrics.

Decision made here: a call is bad if haclient could not get it answered, or its proxy had no room for it. What the
server refused for the request's own fault was answered; what the application gave up says nothing, and is left out;
calls of embedding servers are none of Milvus'. The same expressions ask a running Prometheus what has been spent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from haclient.planning.slo import Alert, Objective, alerts
from haclient.planning.units import prometheus, span

#: Outcomes of calls that were answered; see `haclient.events.CallFinished` for what they mean.
GOOD: Final = ("ok", "error", "AccessDenied", "PoisonedCall", "WriteRefused")
_MILVUS: Final = 'method!~"Embed.*"'
_RATIO: Final = "haclient:call_errors:ratio_rate"


def bad(function: str, window: str, where: str = "") -> str:
    """Return the PromQL of the calls that failed.

    Args:
        function: ``rate`` or ``increase``.
        window: For example ``5m``.
        where: Matchers of further labels.
    """
    good = "|".join((*GOOD, "cancelled"))
    return _sum(function, f'outcome!~"{good}"', window, where)


def total(function: str, window: str, where: str = "") -> str:
    """Return the PromQL of all calls that count; see `bad`."""
    return _sum(function, 'outcome!="cancelled"', window, where)


def _sum(function: str, outcomes: str, window: str, where: str) -> str:
    # What has never happened has no series, and would make nothing of the whole sum.
    calls = ", ".join(filter(None, (where, _MILVUS, outcomes)))
    counted = f"haclient_calls_total{{{calls}}}[{window}]", f"haclient_proxy_shed_total{{{where}}}[{window}]"
    return " + ".join(f"(sum({function}({each})) or vector(0))" for each in counted)


def text(objective: Objective) -> str:
    """Write the rules file of an objective: recording rules, and the alerts of `haclient.planning.slo.alerts`."""
    told = alerts(objective)
    percent = f"{objective.target * 100:.10g}%"
    window = prometheus(objective.window_s)
    return "\n".join(
        [
            f"# {percent} of calls answered over {window}: the budget is {span(objective.budget_s)} without an answer.",
            f'# Made by: haclient plan slo --target "{percent}" --window {window} --rules',
            "groups:",
            "  - name: haclient-slo",
            "    rules:",
            *(line for one in sorted({w for a in told for w in (a.long_s, a.short_s)}) for line in _recorded(one)),
            *(line for alert in told for line in _alert(objective, alert)),
            "",
        ]
    )


def _recorded(window_s: float) -> Iterator[str]:
    window = prometheus(window_s)
    yield f"      - record: {_RATIO}{window}"
    yield "        expr: |-"
    yield f"          ({bad('rate', window)})"
    yield "          /"
    yield f"          ({total('rate', window)})"


def _alert(objective: Objective, alert: Alert) -> Iterator[str]:
    long, short = prometheus(alert.long_s), prometheus(alert.short_s)
    ratio = f"{alert.ratio:.6g}"
    lasts = span(objective.window_s / alert.burn)
    yield "      - alert: HaclientErrorBudgetBurn"
    yield f"        expr: {_RATIO}{long} > {ratio} and {_RATIO}{short} > {ratio}"
    yield "        labels:"
    yield f"          severity: {alert.severity}"
    yield f'          long: "{long}"'
    yield "        annotations:"
    yield f'          summary: "{{{{ $value | humanizePercentage }}}} of calls have failed over {long}"'
    yield "          description: >-"
    yield f"            The error budget is spent {alert.burn:.3g} times as fast as it may be: it lasts for {lasts}."
    yield "          runbook: docs/runbooks.md#the-error-budget-burns"
