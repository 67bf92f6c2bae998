"""Run every registered optimizer to a fixed target, on real data and under noise.

Claim: with a learning rate chosen for it on other seeds, nearly every optimizer of the
registry reaches the target on handwritten digits within 100 steps, and most do on a
noisy quadratic; which is first depends on the problem.

Command:  python -m experiments.optimizer_zoo
          python -m experiments.optimizer_zoo --optimizers sgd adam muon
Minutes:  a quarter of a minute per optimizer and problem on two cores.
Expected: on digits medians of 30 to 75 steps for nearly all optimizers, to a
          validation loss of 0.2 nats, MuonH and AdamC 35 among them; DoG 200, Lion and
          Rprop (which is made for full batches) mostly never, and Scion, whose weights
          stay in a ball of radius one, never. On the quadratic schedule-free SGD 140,
          momentum 180, Adam 270; MuonH and AdamH, which keep its norm, never.

The digits are scikit-learn's, 8x8 pixels, learned by a dense network 64-32-10 in
batches of 64. The quadratic has 50 coordinates in a rotated basis, curvatures from
0.01 to 1, and gradients with Gaussian noise. The learning rate is the one of the grid
with the smallest upper quartile of steps to the target over the tuning seeds; the
table comes from fresh seeds. A star marks a rate at the edge of the grid.

The run folder (``runs/optimizer_zoo/...``) holds config.json, manifest.json with the
results, and zoo.png.
"""

import dataclasses
from pathlib import Path

import experiments.races as races
from experiments.outputs import finish, new_folder, run_cli


@dataclasses.dataclass(frozen=True)
class Config(races.Rules):
    """The rules of the race, its targets, and where the results go."""

    digits_target: float = 0.2  # nats
    quadratic_target: float = 0.05  # of 5 at the start
    noise: float = 0.1  # standard deviation of the quadratic's gradients
    runs: Path = Path("runs/optimizer_zoo")


def main(config: Config) -> dict[str, dict[str, races.Row]]:
    """Race everything; print one table per problem and return the rows."""
    races.check(config)
    problems = [
        races.digits(config.digits_target),
        races.noisy_quadratic(config.quadratic_target, config.noise),
    ]
    folder = new_folder(config)
    results = races.race(problems, config)
    for problem in problems:
        print(f"{races.table(problem, results[problem.name], config)}\n")
    finish(folder, races.summary(results), zoo=races.draw(results, config))
    return results


if __name__ == "__main__":
    run_cli(main, Config, __doc__)
