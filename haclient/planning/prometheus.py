"""What a Prometheus server that scrapes haclient has seen.

Decision made here: it is asked for whole answers (how many calls, how many failures), in PromQL, so that nothing is
downloaded. A cluster has failed while all its endpoints were down; what was shorter than a step is not seen.
"""

from __future__ import annotations

import math
from typing import Any, Final, Self, final

import httpx

from haclient.errors import ConfigError, HAClientError
from haclient.planning import rules
from haclient.planning.measured import Failures, found
from haclient.planning.units import prometheus

_WORKS: Final = 'max by (cluster) (haclient_endpoint_state{state!="down"})'
#: Distance of the moments that are looked at.
_STEP: Final = "30s"


@final
class PrometheusFailed(HAClientError):
    """The Prometheus server gave no answer."""


@final
class Prometheus:
    """Asks one server; use it in ``with``.

    Args:
        url: Its address, for example ``http://127.0.0.1:9090``; a user and a password in it are never shown.
        timeout_s: Time for each answer, seconds.

    Raises:
        ConfigError: The address cannot be right.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL:
            address = httpx.URL()
        if address.scheme not in {"http", "https"} or not address.host:
            raise ConfigError("arguments: prometheus: is not an address; write for example http://127.0.0.1:9090")
        self._shown = address.copy_with(userinfo=b"", query=None, fragment=None)
        self._http = httpx.Client(base_url=address, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def calls(self, window_s: float) -> tuple[float, float]:
        """Return how many calls there were lately, and how many of them were bad (see `haclient.planning.rules`)."""
        window = prometheus(window_s)
        total, bad = (self._one(part("increase", window)) for part in (rules.total, rules.bad))
        return total, min(bad, total)

    def failures(self, window_s: float) -> Failures:
        """Return how often clusters have failed lately.

        Raises:
            ConfigError: None has.
        """
        over = f"[{prometheus(window_s)}:{_STEP}]"
        clusters = self._one(f"count({_WORKS})")
        seen_s = self._one(f"max(count_over_time({_WORKS}{over}))") * 30
        fell = self._one(f"sum(resets({_WORKS}{over}))")
        down = self._one(f"sum(1 - avg_over_time({_WORKS}{over}))")
        return found(Failures(copies=round(clusters), watched_s=seen_s, failures=round(fell), down_s=down * seen_s))

    def _one(self, query: str) -> float:
        """Ask for one number; nothing is 0."""
        try:
            answer = self._http.get("api/v1/query", params={"query": query})
            value: Any = answer.json()
            if value["status"] != "success":
                raise PrometheusFailed(f"{self._shown}: {value['errorType']}: {value['error']}")
            result = value["data"]["result"]
            number = float(result[0]["value"][1]) if result else 0.0
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise PrometheusFailed(f"{self._shown}: cannot be asked ({why}); see --prometheus") from None
        except (ValueError, KeyError, TypeError, IndexError):
            raise ConfigError(f"{self._shown}: is no Prometheus server (answered {answer.status_code})") from None
        return number if math.isfinite(number) else 0.0
