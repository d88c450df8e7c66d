"""A sink whose package is missing says which extra to install."""

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [
        ("haclient.listeners.prometheus", "prometheus_client", "haclient[prometheus]"),
        ("haclient.listeners.opentelemetry", "opentelemetry", "haclient[opentelemetry]"),
    ],
)
def test_missing_extra(monkeypatch, module, missing, extra):
    """The error is an ImportError with the command."""
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ImportError) as caught:
        importlib.import_module(module)
    assert f'pip install "{extra}"' in str(caught.value)


def test_package_imports_without_extras(monkeypatch):
    """The package itself needs neither."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "haclient.listeners", raising=False)
    importlib.import_module("haclient.listeners")
