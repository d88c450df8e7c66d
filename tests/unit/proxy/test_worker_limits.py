"""What a worker's process asks of its system."""

import resource

from haclient.proxy import worker


def test_as_many_descriptors_as_the_process_may_have(monkeypatch):
    """The soft limit goes up to the hard one; a system that refuses is left alone."""
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1_024, 65_536))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: asked.append((what, limits)))
    worker._raise_descriptors()
    assert asked == [(resource.RLIMIT_NOFILE, (65_536, 65_536))]

    def refuse(what, limits):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    worker._raise_descriptors()
