"""Backup and restore through the client API."""
