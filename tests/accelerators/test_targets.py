"""Which targets there are, and which libtpu compiles for them."""

import importlib.metadata

import pytest

import fngrad.accelerators.targets as targets
from fngrad.accelerators.targets import parsed_target


@pytest.mark.parametrize(
    ("text", "chip", "devices"),
    [
        ("v5e:1x1", "v5e", 1),
        ("v5e:2x4", "v5e", 8),
        ("v5e:16x16", "v5e", 256),
        ("v6e:1x1", "v6e", 1),
        ("v4:2x2x1", "v4", 4),
        ("v5p:4x4x8", "v5p", 128),
        ("tpu7x:2x2x1", "tpu7x", 8),  # two devices a chip
    ],
)
def test_a_tpu_has_a_chip_and_devices(text, chip, devices):
    target = parsed_target(text)
    assert target.platform == "tpu"
    assert target.chip is not None
    assert (target.chip.name, target.devices) == (chip, devices)
    assert target.topology["topology_name"] == text


def test_one_chip_is_a_host_of_its_own_and_v4_has_whole_chips():
    assert parsed_target("v5e:1x1").topology["chips_per_host_bounds"] == (1, 1, 1)
    assert "chips_per_host_bounds" not in parsed_target("v5e:2x2").topology
    assert parsed_target("v4:2x2x1").topology["chip_config_name"] == "megacore"


@pytest.mark.parametrize("text", ["cuda", "cpu"])
def test_a_platform_has_no_chip(text):
    target = parsed_target(text)
    assert (target.platform, target.chip, target.devices) == (text, None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5e", "need a target such as \"v5e:1x1\".*got 'v5e'"),
        ("v3:2x2x1", "need a target such as"),
        ("v5e:2x4 ", "need a target such as"),
        ("v5e:2x2x1", "need 2 axes of v5e, such as 2x2, got 'v5e:2x2x1'"),
        ("v5p:2x2", "need 3 axes of v5p, such as 2x2x2"),
        ("v5e:3x4", "an even number along the first two axes"),
        ("v5e:0x0", "an even number along the first two axes"),
        ("v5e:1x2", "an even number along the first two axes"),
        ("v6e:32x16", "at most 256 chips of v6e, 16x16"),
    ],
)
def test_other_targets_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parsed_target(text)


def test_a_target_is_text():
    with pytest.raises(TypeError, match="need a target"):
        parsed_target(8)  # type: ignore[arg-type]


def test_a_missing_or_unfit_libtpu_is_refused_with_the_command():
    targets.check_libtpu("0.0.42.1", "==0.0.42.*")
    jax = importlib.metadata.version("jax")
    for version in (None, "0.0.50"):
        with pytest.raises(ImportError) as caught:
            targets.check_libtpu(version, "==0.0.42.*")
        text = str(caught.value)
        assert f"jax {jax} pins, got {version or 'none'}" in text
        assert text.endswith('pip install "libtpu==0.0.42.*"')
