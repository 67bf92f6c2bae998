"""The benchmark of streams compares the same losses, at a small size."""

import time

import numpy as np
import pytest

import experiments.benchmarks.streams as streams

pytestmark = pytest.mark.any_flags  # most of their time is compilation


@pytest.mark.slow
def test_sources_train_with_the_losses_of_arrays_in_memory(capsys):
    config = streams.Config(
        examples=300, batch_size=16, widths=(8,), steps=6, repeats=0
    )
    fractions = streams.main(config)
    of_mlp = fractions["MLP of width 8"]
    assert of_mlp.keys() >= {"in memory", "8 ahead", "16 ahead", "none ahead"}
    assert of_mlp["in memory"] == 0
    assert fractions["CNN"]["none ahead"] > 0
    shown = capsys.readouterr().out
    assert shown.count("equal") == 8


@pytest.mark.slow
def test_waiting_is_the_time_in_which_the_batch_is_not_there():
    def batches():
        for _ in range(20):
            time.sleep(0.05)
            yield np.zeros(())

    def step(state, batch):
        time.sleep(0.01)
        return state, batch

    config = streams.Config(steps=10)
    assert 0.5 < streams.waiting(step, 0, batches(), config) < 0.95
