"""Server processes that drills and tests start, hurt and stop."""
