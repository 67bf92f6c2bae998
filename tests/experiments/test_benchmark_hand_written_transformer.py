"""The hand-written transformer is fngrad's, and the benchmark prints its ratios."""

import jax
import jax.numpy as jnp
import pytest

import experiments.benchmarks.hand_written_transformer as hand_written
from experiments.char_transformer import SIZES, Size

pytestmark = pytest.mark.any_flags  # most of their time is compilation


@pytest.mark.slow
def test_losses_agree_and_the_ratios_are_printed(monkeypatch, capsys):
    monkeypatch.setitem(SIZES, "small", Size(8, 1, 2, 4, 3, 0.02, 10, dropout=0.1))
    config = hand_written.Config(
        sizes=("small",), repeats=0, compilations=0, round_seconds=0.001, checked=8
    )
    # By hand one broadcasts as NumPy does.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        ratios = hand_written.main(config)["small"]
    assert set(ratios) == {
        f"{what}{norms}"
        for what in ("step", "compilation")
        for norms in ("", ", with norms")
    }
    assert all(ratio > 0 for ratio in ratios.values())
    shown = capsys.readouterr().out
    assert "8 losses agree" in shown
    assert shown.count("fngrad, with norms") == 2


def test_the_learning_rate_by_hand_is_that_of_the_schedule():
    ours = hand_written.schedule()
    for step in (0, 1, 50, 99, 100, 101, 500, 999, 1000, 2000):
        by_hand = hand_written.learning_rate(jnp.float32(step))
        assert float(by_hand) == pytest.approx(float(ours(step)), rel=1e-5, abs=1e-9)
