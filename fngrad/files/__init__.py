"""Locks on folders, atomic writes, JSON, and the check that a path is local."""
