"""Experiments on long runs: kills, and memory over many steps."""

import json

import pytest

import experiments.benchmarks.soak as soak
import experiments.survive as survive


@pytest.mark.slow
def test_a_short_soak_reads_memory_and_grows_by_no_array(capsys):
    config = soak.Config(
        steps=60, eval_every=10, log_every=5, save_every=10, warm_up=0.5, width=8
    )
    grown = soak.main(config)
    assert grown.arrays == 0
    assert abs(grown.resident) < 2**30
    per_step = {"loss", "learning_rate", "is_finite", "grad_norm", "update_norm"}
    assert grown.history >= 30 * 8 * len(per_step)
    shown = capsys.readouterr().out
    assert f"{grown.arrays:+d} live arrays" in shown
    assert [line.split()[0] for line in shown.split("\n")[1:4]] == ["10", "20", "30"]


def test_unsupported_signals_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="need signals among SIGKILL"):
        survive.main(survive.Config(signals=("SIGSTOP",), runs=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_disturbed_run_ends_with_the_same_bits(tmp_path, capsys):
    signals = ("SIGTERM", "SIGKILL")
    config = survive.Config(
        signals=signals,
        damage_after=2,
        epochs=20,
        save_every=40,
        pause=0.2,
        runs=tmp_path,
    )
    results = survive.main(config)
    shown = capsys.readouterr().out
    assert results["same"]
    assert shown.count(results["digest"]) == 2
    assert "\nthe same bits\n" in shown
    preempted, killed, last = results["rows"]
    assert (preempted[3], killed[3], last[3]) == ("75", "-9", "0")
    assert killed[1] == preempted[4]
    assert int(last[1]) < int(killed[4])  # its newest checkpoint was damaged
    assert "was flipped" in killed[5]
    (folder,) = tmp_path.iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["results"]["same"] is True
