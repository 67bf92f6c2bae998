"""Accelerators: whether those here work, and what a step takes on one that is not.

`fngrad.doctor` looks at devices, versions and speed; `fngrad.preflight` compiles a step
for a TPU without one. Both know the peaks of `chips`.
"""
