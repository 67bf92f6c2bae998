"""The benchmark of checkpoints prints all of its cases, at a small size."""

import experiments.benchmarks.checkpoints as checkpoints


def test_the_table_has_every_case_and_nothing_is_left(tmp_path, capsys):
    config = checkpoints.Config(megabytes=4, arrays=2, repeats=1, folder=tmp_path)
    times, steps = checkpoints.main(config)
    shown = capsys.readouterr().out
    assert "a state of 4 MB, on cpu" in shown
    for name, values in times.items():
        assert shown.count(name) >= 2
        assert all(value > 0 for value in values)
    assert times["asynchronous save returns"] < times["save"]
    assert min(steps.alone, steps.meanwhile) > 0
    assert f"{steps.meanwhile / steps.alone:.2f} times as long" in shown
    for part in checkpoints.PARTS:
        assert part in shown
    assert list(tmp_path.iterdir()) == []
