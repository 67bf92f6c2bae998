"""These tests are collected where JAX has eight devices.

`tests/sharding/test_on_eight_devices.py` starts a process that has.
"""

import jax

DEVICES = 8

collect_ignore_glob = ["test_*.py"] if len(jax.devices()) < DEVICES else []
