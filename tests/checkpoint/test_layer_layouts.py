"""Layers saved in one layout and wanted in the other: what the messages advise works.

Each test runs the code that stands in the message.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from saved_trees import abstract, assert_same

import fngrad as fg
import fngrad.layers as layers
from fngrad.checkpoint import (
    CheckpointError,
    load_safetensors,
    restore,
    save,
    save_safetensors,
)

COUNT = 3
BLOCK = layers.serial(norm=layers.layer_norm(4), linear=layers.linear(4, 4))
STACKS = {
    "one by one": layers.serial(*[BLOCK] * COUNT),
    "stacked": layers.repeat(BLOCK, COUNT),
}
BOTH_WAYS = [("one by one", "stacked"), ("stacked", "one by one")]
both_ways = pytest.mark.parametrize(("saved", "wanted"), BOTH_WAYS)


def state_of(layout, seed, optimizer=None, **more):
    model = layers.serial(blocks=STACKS[layout], head=layers.linear(4, 2))
    params = {**model.init(seed), **more}
    return fg.init_state(params, optimizer or fg.adam(0.1), key=0)


def advised(text):
    """Return the two conversions in a message, as functions of a tree."""
    found = re.search(r"restore with like=(.*), then .* by fngrad\.(.*\))", text)
    assert found, text
    before, after = found[1], found[2]

    def run(code, **names):
        return eval(code, {"jax": jax, "fngrad": fg, **names})

    return (
        lambda like: run(before, like=like),
        lambda restored: run(f"fngrad.{after}", restored=restored),
    )


@both_ways
def test_a_whole_state_is_restored_as_the_error_says(tmp_path, saved, wanted):
    save(tmp_path, state_of(saved, 0))
    with pytest.raises(CheckpointError, match=rf"blocks\" are saved {saved}") as caught:
        restore(tmp_path, state_of(wanted, 1))
    message = str(caught.value)
    assert "another model" not in message
    assert "partial" not in message
    before, after = advised(message)
    back = after(restore(tmp_path, before(state_of(wanted, 1))))
    assert_same(back, state_of(wanted, 0))  # both have the same values for a key


@both_ways
def test_abstract_parameters_are_restored_as_the_error_says(tmp_path, saved, wanted):
    save(tmp_path, state_of(saved, 0))
    like = abstract(state_of(wanted, 1).params)
    with pytest.raises(CheckpointError) as caught:
        restore(tmp_path, like, part="params")
    before, after = advised(str(caught.value))
    back = after(restore(tmp_path, before(like), part="params"))
    assert_same(back, state_of(wanted, 0).params)


@both_ways
def test_partial_warns_how_layers_are_restored_too(tmp_path, saved, wanted):
    save(tmp_path, state_of(saved, 0))
    like = state_of(wanted, 1, extra=jnp.zeros(2)).params
    with pytest.warns(UserWarning, match=r"restored 2 of .* kept as") as caught:
        restore(tmp_path, like, part="params", partial=True)
    before, after = advised(str(caught[0].message))
    with pytest.warns(UserWarning, match=r"kept as they are: 'extra'$"):
        back = restore(tmp_path, before(like), part="params", partial=True)
    assert_same(after(back), {**state_of(wanted, 0).params, "extra": like["extra"]})


@both_ways
def test_a_safetensors_file_of_layers_alone_is_read_as_the_error_says(
    tmp_path, saved, wanted
):
    made = {layout: stack.init(0) for layout, stack in STACKS.items()}
    path = save_safetensors(tmp_path / "a.safetensors", made[saved])
    for partial in (False, True):
        with pytest.raises(CheckpointError) as caught:
            load_safetensors(path, made[wanted], partial=partial)
        before, after = advised(str(caught.value))
        back = after(load_safetensors(path, before(made[wanted])))
        assert_same(back, made[wanted])


@both_ways
def test_a_run_in_a_folder_of_the_other_layout_is_told_the_recipe(
    tmp_path, saved, wanted
):
    def fit(layout, resume="auto"):
        model = layers.serial(blocks=STACKS[layout], head=layers.linear(4, 2))
        step = fg.make_step(
            lambda params, batch: jnp.sum(layers.batched(model)(params, batch) ** 2),
            fg.adam(0.1),
        )
        fg.fit(
            *(step, state_of(layout, 0), fg.data.from_arrays(jnp.ones((4, 4)), 2)),
            num_steps=1,
            run_dir=tmp_path,
            save_every=1,
            progress=False,
        )

    fit(saved)
    with pytest.raises(CheckpointError, match="is for a run in another folder") as got:
        fit(wanted)
    advised(str(got.value))


def test_nodes_without_a_common_name_are_listed(tmp_path):
    trees = {
        layout: {"encoder": stack.init(0), "decoder": stack.init(1)}
        for layout, stack in STACKS.items()
    }
    save(tmp_path, trees["one by one"], step=0)
    with pytest.raises(CheckpointError, match=r'\["decoder", "encoder"\]') as caught:
        restore(tmp_path, trees["stacked"])
    before, after = advised(str(caught.value))
    assert_same(after(restore(tmp_path, before(trees["stacked"]))), trees["stacked"])


def test_layers_that_already_have_the_layout_are_left_as_they_are(tmp_path):
    saved, wanted = (
        {
            "blocks": STACKS[layout].init(0),
            "inner": {"blocks": STACKS["stacked"].init(1)},
        }
        for layout in ("one by one", "stacked")
    )
    save(tmp_path, saved, step=0)
    with pytest.raises(CheckpointError, match=r'\["blocks"\]') as caught:
        restore(tmp_path, wanted)
    before, after = advised(str(caught.value))
    assert_same(after(restore(tmp_path, before(wanted))), wanted)


def test_a_state_that_does_not_convert_is_told_apart(tmp_path):
    novograd = fg.novograd(0.1)  # has a number for each leaf
    save(tmp_path, state_of("one by one", 0, novograd))
    like = state_of("stacked", 1, novograd)
    with pytest.raises(CheckpointError, match=r'begun anew .* part="params"') as caught:
        restore(tmp_path, like)
    before, after = advised(str(caught.value))
    back = after(restore(tmp_path, before(like.params), part="params"))
    assert_same(back, state_of("stacked", 0).params)


def test_layers_that_are_not_the_same_get_no_recipe(tmp_path):
    made = STACKS["one by one"].init(0)["layers"]
    like = STACKS["stacked"].init(0)
    for other in (
        made[:2],  # another count
        [*made[:2], jax.tree.map(lambda x: x.astype(jnp.bfloat16), made[2])],
        [*made[:2], {"norm": made[2]["norm"]}],
    ):
        save(tmp_path, {"blocks": {"layers": other}, "head": jnp.ones(1)}, step=0)
        with pytest.raises(CheckpointError, match="takes what fits") as caught:
            restore(tmp_path, {"blocks": like, "head": jnp.ones(1)})
        assert "stack" not in str(caught.value)
