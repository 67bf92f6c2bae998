"""Accelerators: what chips can do, and what a step would take on one that is not here.

`fngrad.preflight` compiles for a TPU without one.
"""
