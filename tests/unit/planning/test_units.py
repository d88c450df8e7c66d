"""Durations and shares as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haclient.planning.units import duration, prometheus, share, span


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30d", 2_592_000), ("5m", 300), ("1h30m", 5_400), ("1.5s", 1.5), ("250ms", 0.25), ("1y", 31_536_000),
     ("2w", 1_209_600), ("P30D", 2_592_000), ("PT1H", 3_600), (" 5m ", 300), ("0s", 0)],
)  # fmt: skip
def test_duration(text, seconds):
    """Prometheus' form, and ISO 8601."""
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "30", "30x", "5m1h", "-5m", "-P1D", "nan", "1e3s", "m", "P", "5 m", "5M"])
def test_no_duration(text):
    """What says no time is refused, with what to write."""
    with pytest.raises(ValueError, match="write for example"):
        duration(text)


@pytest.mark.parametrize(("text", "value"), [("99.95%", 0.9995), ("0.9995", 0.9995), ("5 %", 0.05), ("0", 0), ("1", 1)])
def test_share(text, value):
    """A percentage, or a number from 0 to 1."""
    assert share(text) == value


@pytest.mark.parametrize("text", ["", "99.95", "101%", "-1%", "nan", "inf", "%", "a", "0,5"])
def test_no_share(text):
    """99.95 without its sign is no share: nobody can mean that, or know what else."""
    with pytest.raises(ValueError, match="write for example"):
        share(text)


@given(st.integers(1, 10**9))
def test_prometheus_reads_what_is_written(seconds):
    """Whole seconds survive being written and read."""
    assert duration(prometheus(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (0.25, "250 ms"), (1, "1 s"), (90, "90 s"), (180, "3 min"), (7_200, "2 h"), (864_000, "10 days"),
     (1e8, "3.17 years")],
)  # fmt: skip
def test_span(seconds, text):
    """Two or three digits, for a person."""
    assert span(seconds) == text
