"""`MilvusClient`: the sync drop-in, over the same core through one portal thread."""
