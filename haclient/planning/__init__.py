"""How much availability to expect, and what it costs."""
