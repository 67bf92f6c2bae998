"""Experiments: one script, one question; the docstring holds claim and command."""
