"""Replicated writes over simulated clusters and one log, in virtual time; every seed is one history."""
