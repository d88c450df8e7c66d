"""Drills: start servers, break them on purpose, and measure what the application noticed."""
