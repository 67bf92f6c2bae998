"""fngrad: a purely functional training framework on JAX.

Training is a pure function. A transform is a pair of pure functions; a step takes a
state and a batch and returns the next state; a run is a fold of steps. So all of them
can be jitted, differentiated, batched, replayed and tested.
"""

__version__ = "0.1.0"

from typing import TYPE_CHECKING

import fngrad.callbacks as callbacks
import fngrad.checkpoint as checkpoint
import fngrad.data as data
import fngrad.distributed as distributed
import fngrad.layers as layers
import fngrad.logging as logging
import fngrad.losses as losses
import fngrad.metrics as metrics
import fngrad.models as models
import fngrad.schedules as schedules
import fngrad.sharding as sharding
import fngrad.transforms.projections as projections
import fngrad.tree as tree
from fngrad.data.dataset import Dataset
from fngrad.files.compilation_cache import cache_compilations
from fngrad.files.exported_programs import export, load_exported
from fngrad.fitting.checkpointing import SaveError
from fngrad.fitting.dry_runs import DryRun, dry_run
from fngrad.fitting.early_stopping import EarlyStopping
from fngrad.fitting.hooks import STOP
from fngrad.fitting.nonfinite import NonFiniteError
from fngrad.fitting.training_loop import FitResult, fit
from fngrad.layers.core import Layer, StatefulLayer
from fngrad.layers.low_rank_adapters import LoRA, lora
from fngrad.logging.history import History
from fngrad.optimizers import (
    REGISTRY,
    adabelief,
    adadelta,
    adafactor,
    adagrad,
    adam,
    adam_mini,
    adamax,
    adamc,
    adamh,
    adamuon,
    adamw,
    adan,
    ademamix,
    adopt,
    amsgrad,
    came,
    dadapt_adamw,
    dadapt_sgd,
    dion,
    dog,
    kron,
    lamb,
    laprop,
    lars,
    lbfgs,
    lion,
    madgrad,
    mars,
    momentum,
    muon,
    muonh,
    nadam,
    normuon,
    novograd,
    prodigy,
    radam,
    rmsprop,
    rprop,
    schedule_free_adamw,
    schedule_free_radam,
    schedule_free_sgd,
    scion,
    sgd,
    shampoo,
    sign_sgd,
    signum,
    simplified_ademamix,
    sm3,
    soap,
    sophia,
    stable_adamw,
    yogi,
)
from fngrad.optimizers.adabelief import scale_by_belief
from fngrad.optimizers.adadelta import scale_by_adadelta
from fngrad.optimizers.adafactor import scale_by_factored_rms
from fngrad.optimizers.adagrad import scale_by_rss
from fngrad.optimizers.adam import scale_by_adam
from fngrad.optimizers.adam_mini import scale_by_adam_mini
from fngrad.optimizers.adamax import scale_by_adamax
from fngrad.optimizers.adamc import add_corrected_weight_decay
from fngrad.optimizers.adamuon import scale_by_adamuon
from fngrad.optimizers.adan import scale_by_adan
from fngrad.optimizers.ademamix import half_life_warmup, scale_by_ademamix
from fngrad.optimizers.adopt import scale_by_adopt
from fngrad.optimizers.amsgrad import scale_by_amsgrad
from fngrad.optimizers.came import scale_by_came
from fngrad.optimizers.dadapt import scale_by_dadapt_adam, scale_by_dadapt_sgd
from fngrad.optimizers.dion import scale_by_dion
from fngrad.optimizers.dog import scale_by_dog
from fngrad.optimizers.hyperball import scale_by_hyperball
from fngrad.optimizers.kron import scale_by_kron
from fngrad.optimizers.laprop import scale_by_laprop
from fngrad.optimizers.lars import scale_by_lars
from fngrad.optimizers.lbfgs import scale_by_lbfgs
from fngrad.optimizers.lion import scale_by_lion
from fngrad.optimizers.madgrad import scale_by_madgrad
from fngrad.optimizers.mars import scale_by_mars
from fngrad.optimizers.muon import scale_by_muon
from fngrad.optimizers.nadam import scale_by_nadam
from fngrad.optimizers.normuon import scale_by_normuon
from fngrad.optimizers.novograd import scale_by_block_norm
from fngrad.optimizers.prodigy import scale_by_prodigy
from fngrad.optimizers.radam import scale_by_radam
from fngrad.optimizers.rmsprop import scale_by_rms, scale_by_stddev
from fngrad.optimizers.rprop import scale_by_rprop
from fngrad.optimizers.schedule_free import schedule_free
from fngrad.optimizers.scion import scale_by_lmo
from fngrad.optimizers.shampoo import scale_by_shampoo
from fngrad.optimizers.sign_sgd import scale_by_sign
from fngrad.optimizers.simplified_ademamix import scale_by_simplified_ademamix
from fngrad.optimizers.sm3 import scale_by_sm3
from fngrad.optimizers.soap import scale_by_soap
from fngrad.optimizers.sophia import scale_by_sophia
from fngrad.optimizers.stable_adamw import scale_by_stable_adamw
from fngrad.optimizers.yogi import scale_by_yogi
from fngrad.programs.operation_counts import Costs, costs
from fngrad.programs.optional_imports import imported_later
from fngrad.training import TrainState, init_state, make_step, run, snapshot
from fngrad.training.differences import central_differences
from fngrad.training.evaluation import evaluate
from fngrad.training.evolution import evolution_strategy
from fngrad.training.precision import Policy, mixed_precision
from fngrad.training.summaries import StepSummary, summary
from fngrad.transforms.accumulation import accumulate
from fngrad.transforms.averages import average_params, ema_params, lookahead
from fngrad.transforms.blocks import clip_by_block_rms, scale_by_param_block_rms
from fngrad.transforms.cautious_updates import cautious
from fngrad.transforms.clipping import (
    adaptive_clip,
    centralize,
    clip,
    clip_by_global_norm,
    clip_by_norm,
)
from fngrad.transforms.core import (
    Transform,
    apply_updates,
    chain,
    identity,
    named,
    report,
)
from fngrad.transforms.damping import adaptive_damping
from fngrad.transforms.decay import (
    add_cautious_weight_decay,
    add_decayed_weights,
    proximal_decay,
)
from fngrad.transforms.depth import gradual_unfreezing, scale_by_depth
from fngrad.transforms.description import describe
from fngrad.transforms.dynamic_loss_scale import loss_scaling
from fngrad.transforms.evaluation_point import eval_model_state, eval_params
from fngrad.transforms.laws import check_transform
from fngrad.transforms.layer_stacks import layerwise
from fngrad.transforms.masking import freeze, masked, partition
from fngrad.transforms.metric_windows import recent_values
from fngrad.transforms.momentum_buffers import ema, trace
from fngrad.transforms.noise import add_noise
from fngrad.transforms.nonfinite_updates import skip_nonfinite
from fngrad.transforms.plateau import reduce_on_plateau
from fngrad.transforms.polar_factors import orthogonalize
from fngrad.transforms.projected_updates import project
from fngrad.transforms.quantize import describe_quantization, quantize_state
from fngrad.transforms.rounding import stochastic_round
from fngrad.transforms.scaling import (
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
)
from fngrad.transforms.stacking import stack, stack_leaves
from fngrad.transforms.step_length import scale_by_step_length
from fngrad.transforms.trust_ratio import scale_by_trust_ratio
from fngrad.transforms.tunable_hyperparameters import (
    hyperparameters,
    set_hyperparameters,
    tunable,
)
from fngrad.transforms.width import MuP, mup
from fngrad.tree import split

if TYPE_CHECKING:
    import fngrad.closed_form as closed_form
    import fngrad.curvature as curvature
    import fngrad.gradcheck as gradcheck
    import fngrad.landscapes as landscapes
    import fngrad.steps as steps
    import fngrad.sweeps as sweeps
    from fngrad.accelerators.diagnosis import Diagnosis, doctor
    from fngrad.accelerators.preflight_report import Preflight
    from fngrad.accelerators.preflighting import preflight
    from fngrad.backpropagation import (
        Backpropagation,
        GradientNorms,
        backprop,
        gradient_norms,
    )
    from fngrad.postmortem import Autopsy, autopsy
    from fngrad.sweeps.results.result import SweepResult
    from fngrad.sweeps.running.runner import sweep
else:
    __getattr__ = imported_later(
        globals(),
        {
            "Autopsy": "fngrad.postmortem",
            "Backpropagation": "fngrad.backpropagation",
            "Diagnosis": "fngrad.accelerators.diagnosis",
            "GradientNorms": "fngrad.backpropagation",
            "Preflight": "fngrad.accelerators.preflight_report",
            "SweepResult": "fngrad.sweeps",
            "autopsy": "fngrad.postmortem",
            "backprop": "fngrad.backpropagation",
            "closed_form": "fngrad.closed_form",
            "curvature": "fngrad.curvature",
            "doctor": "fngrad.accelerators.diagnosis",
            "gradcheck": "fngrad.gradcheck",
            "gradient_norms": "fngrad.backpropagation",
            "landscapes": "fngrad.landscapes",
            "preflight": "fngrad.accelerators.preflighting",
            "steps": "fngrad.steps",
            "sweep": "fngrad.sweeps",
            "sweeps": "fngrad.sweeps",
        },
    )

# In full lines: one name per line would take 218.
# fmt: off
__all__ = [
    "REGISTRY", "STOP", "Autopsy", "Backpropagation", "Costs", "Dataset", "Diagnosis",
    "DryRun", "EarlyStopping", "FitResult", "GradientNorms", "History", "Layer", "LoRA",
    "MuP", "NonFiniteError", "Policy", "Preflight", "SaveError", "StatefulLayer",
    "StepSummary", "SweepResult", "TrainState", "Transform", "accumulate", "adabelief",
    "adadelta", "adafactor", "adagrad", "adam", "adam_mini", "adamax", "adamc", "adamh",
    "adamuon", "adamw", "adan", "adaptive_clip", "adaptive_damping",
    "add_cautious_weight_decay", "add_corrected_weight_decay", "add_decayed_weights",
    "add_noise", "ademamix", "adopt", "amsgrad", "apply_updates", "autopsy",
    "average_params", "backprop", "cache_compilations", "callbacks", "came", "cautious",
    "central_differences", "centralize", "chain", "check_transform", "checkpoint",
    "clip", "clip_by_block_rms", "clip_by_global_norm", "clip_by_norm", "closed_form",
    "costs", "curvature", "dadapt_adamw", "dadapt_sgd", "data", "describe",
    "describe_quantization", "dion", "distributed", "doctor", "dog", "dry_run", "ema",
    "ema_params", "eval_model_state", "eval_params", "evaluate", "evolution_strategy",
    "export", "fit", "freeze", "gradcheck", "gradient_norms", "gradual_unfreezing",
    "half_life_warmup", "hyperparameters", "identity", "init_state", "kron", "lamb",
    "landscapes", "laprop", "lars", "layers", "layerwise", "lbfgs", "lion",
    "load_exported", "logging", "lookahead", "lora", "loss_scaling", "losses",
    "madgrad", "make_step", "mars", "masked", "metrics", "mixed_precision", "models",
    "momentum", "muon", "muonh", "mup", "nadam", "named", "normuon", "novograd",
    "orthogonalize", "partition", "preflight", "prodigy", "project", "projections",
    "proximal_decay", "quantize_state", "radam", "recent_values", "reduce_on_plateau",
    "report", "rmsprop", "rprop", "run", "scale", "scale_by_adadelta", "scale_by_adam",
    "scale_by_adam_mini", "scale_by_adamax", "scale_by_adamuon", "scale_by_adan",
    "scale_by_ademamix", "scale_by_adopt", "scale_by_amsgrad", "scale_by_belief",
    "scale_by_block_norm", "scale_by_came", "scale_by_dadapt_adam",
    "scale_by_dadapt_sgd", "scale_by_depth", "scale_by_dion", "scale_by_dog",
    "scale_by_factored_rms", "scale_by_hyperball", "scale_by_kron", "scale_by_laprop",
    "scale_by_lars", "scale_by_lbfgs", "scale_by_learning_rate", "scale_by_lion",
    "scale_by_lmo", "scale_by_madgrad", "scale_by_mars", "scale_by_muon",
    "scale_by_nadam", "scale_by_normuon", "scale_by_param_block_rms",
    "scale_by_prodigy", "scale_by_radam", "scale_by_rms", "scale_by_rprop",
    "scale_by_rss", "scale_by_schedule", "scale_by_shampoo", "scale_by_sign",
    "scale_by_simplified_ademamix", "scale_by_sm3", "scale_by_soap", "scale_by_sophia",
    "scale_by_stable_adamw", "scale_by_stddev", "scale_by_step_length",
    "scale_by_trust_ratio", "scale_by_yogi", "schedule_free", "schedule_free_adamw",
    "schedule_free_radam", "schedule_free_sgd", "schedules", "scion",
    "set_hyperparameters", "sgd", "shampoo", "sharding", "sign_sgd", "signum",
    "simplified_ademamix", "skip_nonfinite", "sm3", "snapshot", "soap", "sophia",
    "split", "stable_adamw", "stack", "stack_leaves", "steps", "stochastic_round",
    "summary", "sweep", "sweeps", "trace", "tree", "tunable", "yogi",
]
# fmt: on


def __dir__() -> list[str]:
    return sorted(__all__)
