"""gRPC over HTTP/2 on asyncio: bytes in, bytes out, to one endpoint.

Knows nothing of Milvus. `Channel` is the `haclient.call.Transport` of the real network.
"""

from haclient.wire.bidi import BidiStream
from haclient.wire.channel import Channel, ChannelOptions
from haclient.wire.dial import Target
from haclient.wire.limits import Limits
from haclient.wire.tls import client_context

__all__ = ["BidiStream", "Channel", "ChannelOptions", "Limits", "Target", "client_context"]
