"""Curvature: Hessian products, spectra, critical points, local dynamics."""

from fngrad.curvature.critical_points import CriticalPoint, critical_point
from fngrad.curvature.dynamics import (
    LinearStep,
    NoiseFloor,
    local_rate,
    noise_floor,
    step_jacobian,
)
from fngrad.curvature.gradient_noise import (
    NoiseScale,
    gradient_covariance,
    gradient_noise_scale,
)
from fngrad.curvature.hessian_products import (
    FlatHessian,
    flat_hessian,
    gauss_newton,
    ggn_vp,
    hessian,
    hvp,
    over,
)
from fngrad.curvature.spectra import (
    Extremes,
    Krylov,
    SpectralDensity,
    extreme_eigenvalues,
    lanczos,
    largest_stable_learning_rate,
    sharpness,
    smoothed,
    spectral_density,
)
from fngrad.curvature.trace_estimation import Estimate, diagonal, trace

__all__ = [
    "CriticalPoint",
    "Estimate",
    "Extremes",
    "FlatHessian",
    "Krylov",
    "LinearStep",
    "NoiseFloor",
    "NoiseScale",
    "SpectralDensity",
    "critical_point",
    "diagonal",
    "extreme_eigenvalues",
    "flat_hessian",
    "gauss_newton",
    "ggn_vp",
    "gradient_covariance",
    "gradient_noise_scale",
    "hessian",
    "hvp",
    "lanczos",
    "largest_stable_learning_rate",
    "local_rate",
    "noise_floor",
    "over",
    "sharpness",
    "smoothed",
    "spectral_density",
    "step_jacobian",
    "trace",
]


def __dir__() -> list[str]:
    return sorted(__all__)
