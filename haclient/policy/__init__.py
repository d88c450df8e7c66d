"""What is done per call: retry, hedge, budget, quarantine."""
