"""The state of the world: clusters, endpoints, and which of them may be used."""
