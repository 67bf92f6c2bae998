"""The benchmark of cold starts: its tables, and its scripts as processes."""

import pytest

import experiments.benchmarks.cold_start as cold_start
from experiments.benchmarks.cold_start import Config, Run


def test_ratios_are_taken_within_a_turn_and_programs_are_summed():
    def run(cpu):
        programs = [["init", "draw", 0.5], ["init", "draw", 0.25], ["train", "step", 2]]
        return Run({"import": [1.0, 2.0], "train": [cpu - 1.0, 3.0]}, programs, 0.0)

    runs = {
        cold_start.AGAINST: [run(2.0), run(4.0), run(8.0)],
        "fngrad auto": [run(3.0), run(4.0), run(4.0)],
    }
    assert cold_start.ratio(runs, "fngrad auto") == 1.0  # of 1.5, 1 and 0.5
    words = [line.split() for line in cold_start.seconds_table(runs).splitlines()]
    assert words[-1][-3:] == ["5.00", "3", "1.00"]  # wall, programs, ratio
    table = cold_start.programs_table(runs, most=1)
    assert table.split()[-5:] == ["auto", "train", "step", "1", "2.00"]
    assert "draw" in cold_start.programs_table(runs, most=2)


def test_unknown_scripts_are_refused():
    with pytest.raises(SystemExit, match=r"need scripts among .*got \['flax'\]"):
        cold_start.main(Config(scripts=("flax",)))


@pytest.mark.slow
def test_the_benchmark_of_cold_starts_prints_its_tables(capsys):
    scripts = (cold_start.AGAINST, "fngrad auto, cached")
    cold_start.main(Config(models=("mlp",), scripts=scripts, repeats=1, programs=2))
    shown = capsys.readouterr().out
    for script in scripts:
        assert script in shown
    assert "jit(step)" in shown
