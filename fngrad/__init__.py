"""fngrad: a purely functional training framework on JAX.

Training is a pure function. A transform is a pair of pure functions; a step takes a
state and a batch and gives the next state; a run is a fold of steps. Whatever is a
function can be jitted, differentiated, batched, replayed and tested.
"""

__version__ = "0.1.0"

import fngrad.closed_form as closed_form
import fngrad.curvature as curvature
import fngrad.data as data
import fngrad.gradcheck as gradcheck
import fngrad.landscapes as landscapes
import fngrad.layers as layers
import fngrad.logging as logging
import fngrad.losses as losses
import fngrad.metrics as metrics
import fngrad.models as models
import fngrad.schedules as schedules
import fngrad.tree as tree
from fngrad.backpropagation import Backpropagation, backprop, gradient_norms
from fngrad.batching import Dataset
from fngrad.evaluation import evaluate
from fngrad.fit import FitResult, fit
from fngrad.fitting.session import STOP, EarlyStopping, NonFiniteError
from fngrad.history import History
from fngrad.layers.core import Layer, StatefulLayer
from fngrad.optimizers import (
    REGISTRY,
    adagrad,
    adam,
    adamw,
    momentum,
    rmsprop,
    sgd,
)
from fngrad.training import TrainState, init_state, make_step, run, snapshot
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
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.describe import describe
from fngrad.transforms.laws import check_transform
from fngrad.transforms.masking import freeze, masked, partition
from fngrad.transforms.moments import (
    ema,
    scale_by_adam,
    scale_by_rms,
    scale_by_stddev,
    trace,
)
from fngrad.transforms.noise import add_noise
from fngrad.transforms.scaling import (
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
)
from fngrad.transforms.sums import scale_by_rss
from fngrad.transforms.wrapping import set_hyperparameters, tunable
from fngrad.tree import split

__all__ = [
    "REGISTRY",
    "STOP",
    "Backpropagation",
    "Dataset",
    "EarlyStopping",
    "FitResult",
    "History",
    "Layer",
    "NonFiniteError",
    "StatefulLayer",
    "TrainState",
    "Transform",
    "adagrad",
    "adam",
    "adamw",
    "adaptive_clip",
    "add_decayed_weights",
    "add_noise",
    "apply_updates",
    "backprop",
    "centralize",
    "chain",
    "check_transform",
    "clip",
    "clip_by_global_norm",
    "clip_by_norm",
    "closed_form",
    "curvature",
    "data",
    "describe",
    "ema",
    "evaluate",
    "fit",
    "freeze",
    "gradcheck",
    "gradient_norms",
    "identity",
    "init_state",
    "landscapes",
    "layers",
    "logging",
    "losses",
    "make_step",
    "masked",
    "metrics",
    "models",
    "momentum",
    "named",
    "partition",
    "report",
    "rmsprop",
    "run",
    "scale",
    "scale_by_adam",
    "scale_by_learning_rate",
    "scale_by_rms",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_stddev",
    "schedules",
    "set_hyperparameters",
    "sgd",
    "snapshot",
    "split",
    "trace",
    "tree",
    "tunable",
]
