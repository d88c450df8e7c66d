"""The dashboard for Grafana: ``python dashboard.py > haclient.json`` writes it.

Decision made here: a panel is a line of a table (title, unit, what is drawn, how it is called), and where it stands
follows from the order.
"""

from __future__ import annotations

import json
from itertools import count
from typing import Any

from haclient.planning import rules

JOB = 'job=~"$job"'
RATE = "$__rate_interval"
#: What is added up for the state of an endpoint; 0 is up.
STATES = {"probation": 1, "draining": 2, "drained": 3, "down": 4}
COLOURS = ["green", "yellow", "blue", "purple", "red"]

Drawn = tuple[str, str]  # PromQL, legend


def metric(name: str, *where: str) -> str:
    """Return a selector of one of haclient's metrics."""
    return f"haclient_{name}{{{', '.join((JOB, *where))}}}"


def rate(name: str, by: str, *where: str) -> str:
    """Return how often something happens a second."""
    return f"sum by ({by}) (rate({metric(name, *where)}[{RATE}]))"


def quantile(share: float, name: str, by: str, *where: str) -> str:
    """Return a quantile of a histogram."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric(name + '_bucket', *where)}[{RATE}])))"


def good(window: str) -> str:
    """Return the share of calls that were answered."""
    return f"1 - ({rules.bad('increase', window, JOB)}) / ({rules.total('increase', window, JOB)})"


def endpoints(state: str) -> str:
    """Return 1 for each endpoint that is in a state, 0 for the others."""
    where = metric("endpoint_state", f'state="{state}"')
    return f"max by (cluster, endpoint) ({where})"


#: Rows of panels: title, kind, unit, what is drawn.
ROWS: list[tuple[str, list[tuple[str, str, str, list[Drawn]]]]] = [
    (
        "What users see",
        [
            ("Answered", "stat", "percentunit", [(good("$__range"), "")]),
            ("Error budget left", "stat", "percentunit", [(f"1 - (1 - ({good('$__range')})) / (1 - $objective)", "")]),
            ("Burn rate, last hour", "stat", "none", [(f"(1 - ({good('1h')})) / (1 - $objective)", "")]),
            (
                "Endpoints up",
                "stat",
                "none",
                [(f"sum({endpoints('up')})", "")],
            ),
            ("Calls by outcome", "timeseries", "reqps", [(rate("calls_total", "outcome"), "{{outcome}}")]),
            (
                "Latency",
                "timeseries",
                "s",
                [(quantile(q, "call_duration_seconds", ""), f"p{100 * q:g}") for q in (0.5, 0.99, 0.999)],
            ),
            ("p99 by method", "timeseries", "s", [(quantile(0.99, "call_duration_seconds", "method"), "{{method}}")]),
            (
                "Errors by method",
                "timeseries",
                "reqps",
                [(rate("calls_total", "method, outcome", 'outcome!="ok"'), "{{method}}: {{outcome}}")],
            ),
        ],
    ),
    (
        "Failover",
        [
            (
                "Failovers",
                "timeseries",
                "reqps",
                [(rate("failovers_total", "from_cluster, to_cluster"), "{{from_cluster}} to {{to_cluster}}")],
            ),
            (
                "Hedges and retries for each call",
                "timeseries",
                "percentunit",
                [
                    (f"sum(rate({metric(f'{what}_total')}[{RATE}])) / sum(rate({metric('calls_total')}[{RATE}]))", what)
                    for what in ("hedges", "retries")
                ],
            ),
            (
                "Not tried again: budget spent",
                "timeseries",
                "reqps",
                [(rate("budget_exhausted_total", "wanted"), "{{wanted}}")],
            ),
            (
                "Attempts by what came of them",
                "timeseries",
                "reqps",
                [(rate("attempts_total", "action"), "{{action}}")],
            ),
        ],
    ),
    (
        "Endpoints",
        [
            (
                "State (breaker)",
                "state-timeline",
                "none",
                [(" + ".join(f"{n} * {endpoints(s)}" for s, n in STATES.items()), "{{cluster}} {{endpoint}}")],
            ),
            (
                "Collections that can be served",
                "state-timeline",
                "bool",
                [
                    (
                        f"max by (cluster, endpoint, collection) ({metric('ready')})",
                        "{{cluster}} {{endpoint}} {{collection}}",
                    )
                ],
            ),
            (
                "Attempts by endpoint",
                "timeseries",
                "reqps",
                [(rate("attempts_total", "cluster, endpoint"), "{{cluster}} {{endpoint}}")],
            ),
            (
                "Alarms",
                "timeseries",
                "none",
                [
                    (f"sum by (endpoint) (increase({metric('data_alarms_total')}[{RATE}]))", "data: {{endpoint}}"),
                    (f"sum by (method) (increase({metric('quarantined_total')}[{RATE}]))", "kills servers: {{method}}"),
                ],
            ),
        ],
    ),
    (
        "Mirrored writes",
        [
            (
                "Entries behind",
                "timeseries",
                "none",
                [(f"max by (cluster) ({metric('cluster_lag_entries')})", "{{cluster}}")],
            ),
            (
                "Other site behind",
                "timeseries",
                "s",
                [(f"max by (cluster) ({metric('cluster_lag_seconds')})", "{{cluster}}")],
            ),
            (
                "In sync",
                "state-timeline",
                "bool",
                [(f"min by (cluster) ({metric('cluster_in_sync')})", "{{cluster}}")],
            ),
            (
                "Collections stopped",
                "timeseries",
                "none",
                [(f"max by (cluster) ({metric('cluster_parked_collections')})", "{{cluster}}")],
            ),
            (
                "Who applies the log",
                "state-timeline",
                "bool",
                [
                    (
                        f"max by (cluster, instance, worker) ({metric('applier_active')})",
                        "{{cluster}}: {{instance}} {{worker}}",
                    )
                ],
            ),
            (
                "Log and standing",
                "timeseries",
                "none",
                [
                    (f"sum(increase({metric('log_trouble_total')}[{RATE}]))", "log fails"),
                    (f"sum by (cluster) (increase({metric('reseed_failures_total')}[{RATE}]))", "no copy: {{cluster}}"),
                    (
                        f"sum by (cluster, standing) (increase({metric('standing_changes_total')}[{RATE}]))",
                        "{{cluster}} {{standing}}",
                    ),
                ],
            ),
        ],
    ),
    (
        "Retrieval",
        [
            ("Answers by rung (cache)", "timeseries", "reqps", [(rate("retrievals_total", "rung"), "{{rung}}")]),
            (
                "Retrievals that failed",
                "timeseries",
                "reqps",
                [(rate("retrievals_total", "outcome", 'outcome!="ok"'), "{{outcome}}")],
            ),
            ("p99", "timeseries", "s", [(quantile(0.99, "retrieval_duration_seconds", "mode"), "{{mode}}")]),
            (
                "Embedder",
                "timeseries",
                "s",
                [(quantile(0.99, "call_duration_seconds", "method", 'method=~"Embed.*"'), "p99 {{method}}")],
            ),
        ],
    ),
    (
        "Proxy and overload",
        [
            (
                "Refused: too much to do",
                "timeseries",
                "reqps",
                [(rate("proxy_shed_total", "instance"), "{{instance}}")],
            ),
            (
                "Calls under way",
                "timeseries",
                "none",
                [(f"sum by (instance) ({metric('proxy_calls')})", "{{instance}}")],
            ),
            (
                "Clients' connections",
                "timeseries",
                "none",
                [(f"sum by (instance) ({metric('proxy_connections')})", "{{instance}}")],
            ),
            (
                "Bytes held",
                "timeseries",
                "bytes",
                [(f"sum by (instance) ({metric('proxy_memory_bytes')})", "{{instance}}")],
            ),
            ("Ready", "state-timeline", "bool", [(f"max by (instance) ({metric('proxy_ready')})", "{{instance}}")]),
            (
                "Restarts and refused files",
                "timeseries",
                "none",
                [
                    (f"sum(increase({metric('proxy_worker_restarts_total')}[{RATE}]))", "workers restarted"),
                    (f"sum(increase({metric('config_rejected_total')}[{RATE}]))", "configuration refused"),
                ],
            ),
        ],
    ),
]

#: What kinds of panels look like.
OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}},
    "timeseries": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    "state-timeline": {"mergeValues": True, "showValue": "never", "rowHeight": 0.9},
}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def panels() -> list[dict[str, Any]]:
    """Lay out the rows: statistics are a quarter wide and low, everything else a half or a third."""
    ids, found, y = count(1), [], 0
    for title, row in ROWS:
        found.append({"id": next(ids), "type": "row", "title": title, "gridPos": _at(0, y, 24, 1), "panels": []})
        x, y = 0, y + 1
        high = 0
        for name, kind, unit, drawn in row:
            width = 6 if kind == "stat" else 12 if len(row) in (4, 8) else 8
            if x + width > 24:
                x, y = 0, y + high
            high = 4 if kind == "stat" else 8
            found.append(_panel(next(ids), name, kind, unit, drawn, _at(x, y, width, high)))
            x += width
        y += high
    return found


def _at(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def _panel(number: int, title: str, kind: str, unit: str, drawn: list[Drawn], at: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": unit if unit != "bool" else "none"}
    if kind == "state-timeline":
        names = ["up", *STATES] if unit != "bool" else None
        colours = COLOURS if names else ["red", "green"]
        options = {
            str(n): {"text": text, "color": colours[n], "index": n} for n, text in enumerate(names or ["no", "yes"])
        }
        defaults |= {"mappings": [{"type": "value", "options": options}], "custom": {"fillOpacity": 80}}
    else:
        defaults |= {"min": 0} if kind == "timeseries" else {"decimals": 3}
    targets = [
        {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
        | ({"instant": True, "range": False} if kind == "stat" else {})
        for i, (expr, legend) in enumerate(drawn)
    ]
    return {
        "id": number,
        "type": kind,
        "title": title,
        "datasource": SOURCE,
        "gridPos": at,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": OPTIONS[kind],
        "targets": targets,
    }


def dashboard() -> dict[str, Any]:
    """Return the whole dashboard."""
    jobs = "label_values(haclient_endpoint_state, job)"
    return {
        "uid": "haclient",
        "title": "haclient",
        "tags": ["milvus", "haclient"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                {
                    "name": "job",
                    "type": "query",
                    "datasource": SOURCE,
                    "query": {"query": jobs, "refId": "job"},
                    "definition": jobs,
                    "includeAll": True,
                    "allValue": ".*",
                    "multi": True,
                    "refresh": 2,
                },
                {
                    "name": "objective",
                    "type": "textbox",
                    "query": "0.9995",
                    "current": {"text": "0.9995", "value": "0.9995"},
                },
            ]
        },
        "panels": panels(),
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
