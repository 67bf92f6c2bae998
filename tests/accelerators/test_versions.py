"""Versions that do not fit are found, from metadata and from what is loaded."""

import importlib.metadata

import jax
import pytest

from fngrad.accelerators.versions import (
    asked_versions,
    fits,
    installed_versions,
    judge_versions,
    loaded_versions,
    parts_of,
)

METADATA = [  # of jax 0.7.2, abridged
    "jaxlib<=0.7.2,>=0.7.2",
    "numpy>=2.0",
    'jaxlib==0.7.1; extra == "ci"',
    'libtpu==0.0.23; extra == "tpu"',
    'requests; extra == "tpu"',
    'jax-cuda12-plugin[with-cuda]<=0.7.2,>=0.7.2; extra == "cuda12"',
    'jax-cuda12-plugin<=0.7.2,>=0.7.2; extra == "cuda12-local"',
    'jax-rocm60-plugin<=0.7.2,>=0.7.2; extra == "rocm"',
]
ASKED = {
    "jaxlib": "<=0.7.2,>=0.7.2",
    "libtpu": "==0.0.23",
    "jax-cuda12-plugin": "<=0.7.2,>=0.7.2",
    "jax-rocm60-plugin": "<=0.7.2,>=0.7.2",
}
FIT = {"jax": "0.7.2", "jaxlib": "0.7.2", "libtpu": "0.0.23", "numpy": "2.1.3"}


def judged(installed=FIT, loaded=None, backend="tpu"):
    """Return statuses, texts and ways out of what is not fine."""
    found = judge_versions(installed, loaded or {}, ASKED, backend)
    assert found[-1].status == "ok"
    return [(each.status, each.text, each.way_out) for each in found[:-1]]


def test_what_jax_asks_for_is_read_from_its_metadata():
    assert parts_of(METADATA) == ASKED
    assert parts_of(METADATA[::-1]) == ASKED  # what is asked without an extra counts


def test_the_installed_jax_fits_itself():
    installed = installed_versions()
    assert installed["jax"] == importlib.metadata.version("jax")
    assert {"jaxlib", "libtpu", "jax-cuda12-plugin"} <= asked_versions().keys()
    assert fits(installed["jaxlib"], asked_versions()["jaxlib"])
    assert loaded_versions()["jax"] == jax.__version__


@pytest.mark.parametrize(
    ("version", "conditions", "expected"),
    [
        ("0.0.42.1", "==0.0.42.*", True),
        ("0.0.42", "==0.0.42.*", True),
        ("0.0.4", "==0.0.42.*", False),
        ("0.0.420", "==0.0.42.*", False),
        ("0.10.2", "<=0.10.2,>=0.10.1", True),
        ("0.9.9", "<=0.10.2,>=0.10.1", False),
        ("0.12.0.1", "<=0.10.2,>=0.10.1", False),
        ("0.7.2.0", "==0.7.2", True),
        ("0.7.2+cuda", "==0.7.2", True),
        ("0.7.2", "!=0.7.2", False),
        ("0.7.2", "", True),
        ("0.7.3.dev20250101", ">=0.7.2", None),
        ("0.7.2", "~=0.7.2", None),
        ("0.7.1.dev1", "<0.8,>=0.7", None),
    ],
)
def test_conditions_are_met_by_numbers(version, conditions, expected):
    assert fits(version, conditions) is expected


def test_versions_that_fit_are_listed():
    assert judged() == []
    (listed,) = judge_versions(FIT, {"jax": "0.7.2"}, ASKED, "tpu")
    assert "jaxlib 0.7.2, libtpu 0.0.23, numpy 2.1.3, Python 3." in listed.text


@pytest.mark.parametrize("name", ["jaxlib", "jax-cuda12-plugin"])
def test_a_part_of_another_version_is_a_problem_with_its_command(name):
    ((status, text, way_out),) = judged({**FIT, name: "0.7.1"}, backend="cpu")
    assert status == "problem"
    assert f"{name} is 0.7.1, with jax 0.7.2 it must be {name}<=0.7.2,>=0.7.2" in text
    assert way_out == f'pip install "{name}<=0.7.2,>=0.7.2"'


def test_the_libtpu_of_colabs_image_is_a_warning_and_is_kept():
    colab = {**FIT, "libtpu": "0.0.21.1"}
    ((status, text, way_out),) = judged(colab)
    assert (status, "must be libtpu==0.0.23" in text) == ("warning", True)
    assert way_out.startswith("keep it if the self-test passes")
    ((status, _, way_out),) = judged(colab, backend="cpu")
    assert (status, way_out) == ("warning", 'pip install "libtpu==0.0.23"')


def test_what_pip_changed_under_a_running_process_is_a_problem():
    loaded = {"jax": "0.7.1", "jaxlib": "0.7.2", "numpy": "2.1.3"}
    ((status, text, way_out),) = judged(loaded=loaded)
    assert status == "problem"
    assert "jax 0.7.1 runs, but jax 0.7.2 was installed after" in text
    assert "restart" in way_out
