"""The real client core over simulated servers, in virtual time; every seed is one history and replays exactly."""
