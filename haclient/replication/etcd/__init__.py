"""The mutation log in etcd.

log         what the rest sees: `EtcdLog`
append      read        tidy        news        entries, and waiting for them
ends        both ends of the log
layout      keys and values
txn         transactions
client      HTTP, endpoints, credentials
"""

from haclient.replication.etcd.log import EtcdLog

__all__ = ["EtcdLog"]
