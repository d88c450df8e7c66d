"""Where events go: one module per sink, each a callable to be subscribed to a client.

    client.subscribe(LoggingListener())

`haclient.listeners.logging` needs nothing, `haclient.listeners.prometheus` and
`haclient.listeners.opentelemetry` need the extra of that name; nothing is imported until it is asked for.
"""
