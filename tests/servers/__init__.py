"""Servers of other people for tests: Milvus 2.3.5 (alone and distributed), etcd, Envoy."""
