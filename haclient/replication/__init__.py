"""Replicated writes: one durable log, one applier per cluster, and what is known of how far each has come."""
