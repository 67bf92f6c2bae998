"""The launcher of a laptop: it notices the first process that fails, and names it."""

import signal

import pytest

import experiments.launch as launch

RANK = "import os, signal, sys, time; rank = int(os.environ['JAX_PROCESS_ID'])"


@pytest.fixture(autouse=True)
def usual_signals():
    numbers = (signal.SIGINT, signal.SIGTERM)
    found = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, found, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("what", "status", "told"),
    [
        ("sys.exit(7)", 7, "process 3 ended with status 7"),
        ("os.kill(os.getpid(), 9)", 137, "process 3 was ended by SIGKILL"),
        ("os.kill(os.getpid(), 40)", 168, "process 3 was ended by signal 40"),
    ],
)
def test_the_first_that_fails_is_named_at_once_and_the_others_are_ended(
    monkeypatch, capfd, what, status, told
):
    monkeypatch.setattr(launch, "PATIENCE", 0.2)
    script = f"{RANK}\nif rank == 3: {what}\ntime.sleep(60)"
    assert launch.main(4, 1, "-c", script) == status
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == told
    assert sorted(lines[1:]) == [
        f"process {rank} was ended by SIGTERM" for rank in (0, 1, 2)
    ]


def test_nothing_is_said_of_processes_that_all_end_well(capfd):
    variables = launch.connecting(3, 2)
    assert [x["JAX_PROCESS_ID"] for x in variables] == ["0", "1", "2"]
    assert launch.main(3, 2, "-c", f"{RANK}; print(os.environ['XLA_FLAGS'])") == 0
    out, err = capfd.readouterr()
    assert out.count("--xla_force_host_platform_device_count=2") == 3
    assert err == ""
