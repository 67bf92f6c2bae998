"""Plan the training of large transformers on a pod of TPUs, without one.

Claim: a transformer of a billion parameters fits on eight v5e chips, one of seven
    billion on 16 and not on eight. With 4,096 characters for each chip, compute bounds
    both; tensor parallelism takes more memory there and gains little or nothing.

Command:  python -m experiments.plan_pod
          python -m experiments.plan_pod --sizes 7B --targets v5e:2x4 v5e:4x4
          fngrad preflight experiments/plan_pod.py:make --target v5e:4x4 --fsdp
Minutes:  two to eight of two busy cores for each line of the table.
Expected: at 1 B parameters 3.6 GiB per chip on 8 chips, 2.7 on 16, 1.9 on 64 and 1.7
          on 256 with ``fsdp``; 5.5, 4.4, 3.6 and 3.4 with ``fsdp x 4``; a step of
          169 ms if all overlaps, and if nothing does of 283 to 299 ms (57 to 60 % of
          the peak) and of 314 and 315 ms (54 %). At 7 B parameters 17.6 and 18.2 GiB of
          15.75 on 8 chips, 10.8 and 15.6 on 16, 6.4 and 10.1 on 64, 5.1 and 8.8
          on 256, where a step takes 1.1 s if all overlaps and 1.7 and 1.6 s if nothing
          does (65 and 68 %).

The architecture is that of `experiments.char_transformer`, its blocks in one loop with
remat, the loss in bfloat16, AdamW's state in float32: 12 bytes per parameter. Batches
grow with the chips (``windows`` of ``length`` characters for each), as in weak scaling.
``fsdp`` splits parameters and batch over all chips. ``fsdp x 4`` has four chips for
each part of the batch, which split the layers as well (`models.transformer_rule`).

Every line is a preflight (`fngrad.preflight`): libtpu compiles the step for those
chips. Memory is the compiler's plan for it, and so are the collectives and their bytes.
Times are those of a roofline: FLOPs at the chip's peak, bytes at its memory's bandwidth
and bytes at the bandwidth of all its links; a step takes the longest of them if all
overlap, and their sum if nothing does. What it can't show: how much of these peaks the
program reaches; the loss; the speed of the input. The FLOPs are those of the program,
with what remat computes again (a quarter).

It needs libtpu, in the version that JAX pins; without it, it says how to install it.

The run folder (``runs/plan_pod/...``) holds config.json, manifest.json with the
results, and scaling.png.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

import experiments.char_transformer as char_transformer
import fngrad as fg
from experiments.outputs import finish, new_figure, new_folder, run_cli, table
from fngrad.accelerators.targets import parsed_target
from fngrad.programs.units import seconds_text, size_text

CHARACTERS = 128  # in the alphabet
MODEL_AXIS = 4  # chips that split a layer, of fsdp x 4


class Size(NamedTuple):
    """A transformer; 12 features**2 parameters in each layer."""

    features: int
    layers: int
    heads: int


SIZES = {"1B": Size(2048, 20, 16), "7B": Size(4096, 34, 32)}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is planned, and where the results go."""

    sizes: tuple[Literal["1B", "7B"], ...] = ("1B",)
    targets: tuple[str, ...] = ("v5e:2x4", "v5e:4x4", "v5e:8x8", "v5e:16x16")
    length: int = 1024  # characters in a window
    windows: int = 4  # for each chip
    runs: Path = Path("runs/plan_pod")  # where the run folder is made


class Line(NamedTuple):
    """A plan and what its preflight found."""

    size: str
    split: str  # "fsdp" or "fsdp x 4"
    chips: int
    tokens: int  # in a batch
    report: fg.Preflight


def make(
    *,
    size: str = "1B",
    length: int = 1024,
    batch_size: int = 32,
    precision: Any = "bfloat16",
    micro_batches: int = 1,
    remat: bool = True,
    rule: Any = None,
    wrap: Any = lambda optimizer: optimizer,
) -> tuple[Any, Any, Any]:
    """Return a step, its state and its batch, without a single array."""
    features, layers, heads = SIZES[size]
    model = fg.models.transformer(
        CHARACTERS,
        length,
        features=features,
        num_layers=layers,
        num_heads=heads,
        scan=True,
        remat=remat,
    )
    optimizer = wrap(fg.adamw(3e-4, b2=0.95, weight_decay=0.1, mask="**/weight"))
    step = fg.make_step(
        char_transformer.loss_of(model),
        optimizer,
        precision=precision,
        micro_batches=micro_batches,
        rule=rule,
    )
    state = jax.eval_shape(
        lambda: fg.init_state(model.init(jax.random.key(0)), optimizer, key=0)
    )
    tokens = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    return step, state, {"x": tokens, "y": tokens}


def splits(chips: int) -> dict[str, dict[str, int]]:
    """Return the meshes that are planned, by name."""
    both = {"data": chips // MODEL_AXIS, "model": MODEL_AXIS}
    return {"fsdp": {"data": chips}, f"fsdp x {MODEL_AXIS}": both}


def plan(config: Config, size: str, target: str) -> list[Line]:
    """Return the preflights of a model on a target."""
    chips = parsed_target(target).devices or 1
    batch_size = config.windows * chips
    rule = fg.sharding.fsdp(within=fg.models.transformer_rule())
    options = {"size": size, "length": config.length, "batch_size": batch_size}
    made = make(rule=rule, **options)
    lines = []
    for split, axes in splits(chips).items():
        report = fg.preflight(*made, target, axes=axes)
        line = Line(size, split, chips, batch_size * config.length, report)
        print("  ".join(row_of(line)), flush=True)
        lines.append(line)
    return lines


def row_of(line: Line) -> list[str]:
    """Return the cells of a line of the table."""
    it = line.report
    memory = "-" if it.needed is None else size_text(it.needed)
    cells = [line.size, line.split, str(line.chips), memory]
    if it.times is None:
        return [*cells, "-", "-", "-", it.verdict]
    times = it.times
    seconds = [seconds_text(times.overlapped), seconds_text(times.apart)]
    used = f"{100 * times.compute / times.apart:.0f} to {100 * times.utilization:.0f} %"
    rate = f"{line.tokens / times.overlapped / 1e3:.0f}k"
    parts = (f"{name} {seconds_text(x)}" for name, x in times._asdict().items())
    cells += [" to ".join(seconds), used, rate]
    return [*cells, f"{it.verdict}; {', '.join(parts)}"]


def picture(lines: list[Line], memory: float) -> Any:
    """Return a figure of memory, step time and utilization over chips."""
    figure = new_figure(12, 3.6)
    names = [*values_of(lines[0])]
    for axes, name in zip(figure.subplots(1, 3), names, strict=True):
        for size, split in dict.fromkeys((x.size, x.split) for x in lines):
            own = [x for x in lines if (x.size, x.split) == (size, split)]
            points = [(x.chips, values_of(x)[name]) for x in own]
            known = [(chips, y) for chips, y in points if y is not None]
            style = "o-" if split == "fsdp" else "s--"
            axes.plot(*zip(*known, strict=True), style, label=f"{size}, {split}")
        top = 1.1 * axes.get_ylim()[1]  # or a flat curve would touch the frame
        axes.set(xlabel="chips", ylabel=name, xscale="log", ylim=(0, top))
        ticks = sorted({x.chips for x in lines})
        axes.set_xticks(ticks, [str(chips) for chips in ticks], minor=False)
        axes.minorticks_off()
        if name == names[0]:
            axes.axhline(memory / 2**30, color="0.5", linewidth=1)
            axes.legend()
    return figure


def values_of(line: Line) -> dict[str, float | None]:
    """Return what the figure shows of a line, by the names of its axes."""
    it = line.report
    return {
        "memory per chip (GiB)": it.needed and it.needed / 2**30,
        "step if nothing overlaps (s)": it.times and it.times.apart,
        "utilization then (%)": it.times and 100 * it.times.compute / it.times.apart,
    }


def main(config: Config) -> list[dict[str, Any]]:
    """Plan every size on every target; return the results."""
    folder = new_folder(config)
    lines = [
        line
        for size in config.sizes
        for target in config.targets
        for line in plan(config, size, target)
    ]
    head = ["model", "split", "chips", "memory", "step", "used", "tokens/s", "verdict"]
    print(table(head, [row_of(line) for line in lines]))
    results = [
        {"size": x.size, "split": x.split, "tokens": x.tokens, **x.report.as_json()}
        for x in lines
    ]
    chip = parsed_target(config.targets[0]).chip
    finish(folder, results, scaling=picture(lines, chip.memory if chip else 0.0))
    return results


if __name__ == "__main__":
    run_cli(main, Config, __doc__)
