"""Why a term of office ends before its process does; see also `haclient.replication.claims`."""

from __future__ import annotations


class LeaseLost(Exception):
    """Somebody else applies to this cluster now, or may."""


class HandedOver(Exception):
    """Another process is to apply to this cluster."""


class NeedsReseed(Exception):
    """The cluster cannot be brought up from the log."""
