"""Traced programs, signatures of functions, optional libraries, text tables."""
