"""What can be configured, where it comes from, and what is wrong with it.

Decision made here: everything is checked at once, before anything is sent. A mistake is a
`haclient.errors.ConfigError` with one line per problem: where it was written, the key's path, what is wrong,
and what to write instead. Secrets are never shown: credentials are `pydantic.SecretStr`, URIs are redacted.

Sources, strongest first: arguments, ``HACLIENT_CONFIG`` or ``HACLIENT_URI``, ``MILVUS_URI`` (what pymilvus
reads), ``http://localhost:19530``. In a file (or a dict, which has the same grammar) ``${NAME}`` in what is
secret (``token``, ``user``, ``password``, ``admin_token``, ``tokens``) is replaced by the environment variable
and ``$$`` is a dollar sign; arguments are taken literally, as pymilvus takes them.

    address     what a URI says
    problems    from mistakes to lines of text
    sources     URIs, files and dicts, rewritten into the models' grammar
    pem         whether files that TLS needs can be used
    section     what every table is
    cluster     clusters and endpoints
    sections    time-outs, health, breaker, hedge, retry, wire
    replication how writes reach several clusters
    proxy       the standalone proxy
    model       the whole
"""

from haclient.config.address import DEFAULT_URI, redact
from haclient.config.cluster import ClusterConfig, EndpointConfig
from haclient.config.model import Config
from haclient.config.proxy import Proxy, ProxyLimits, ProxyTLS
from haclient.config.replication import Replication
from haclient.config.sections import Breaker, Canary, Health, Hedge, Retry, Timeouts, Wire

__all__ = [
    "DEFAULT_URI",
    "Breaker",
    "Canary",
    "ClusterConfig",
    "Config",
    "EndpointConfig",
    "Health",
    "Hedge",
    "Proxy",
    "ProxyLimits",
    "ProxyTLS",
    "Replication",
    "Retry",
    "Timeouts",
    "Wire",
    "redact",
]
