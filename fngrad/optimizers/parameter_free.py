"""Optimizers that find their learning rate: Prodigy, D-Adaptation, DoG.

Their ``learning_rate`` is a factor of what they find, by default 1; a schedule around
1 warms up or cools down.
"""

import fngrad.numerics as numerics
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.dadaptation import scale_by_dadapt_adam, scale_by_dadapt_sgd
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.distance_over_gradients import InitStep, scale_by_dog
from fngrad.transforms.polynomial_average import average_params
from fngrad.transforms.prodigy import scale_by_prodigy
from fngrad.transforms.scaling import scale, scale_by_learning_rate
from fngrad.types import Hyper, Scalar, Selector


def prodigy(
    learning_rate: Hyper = 1.0,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    beta3: Hyper | None = None,
    eps: Hyper = 1e-8,
    estim_lr0: Scalar = 1e-6,
    estim_lr_coef: Hyper = 1.0,
    weight_decay: Hyper = 0.0,
    safeguard_warmup: bool = False,
    *,
    use_bias_correction: bool = True,
    growth_rate: Hyper = float("inf"),
    mask: Selector | None = None,
) -> Transform:
    r"""Prodigy: AdamW whose learning rate is an estimate of the distance to go.

    With the estimate $d_t$, $\gamma_t$ the learning rate and
    $\eta_t = d_t\,\gamma_t \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)$,

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,d_t\,g_t, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,d_t^2\,g_t^2$$
    $$r_t = \beta_3\,r_{t-1} + d_t\,\eta_t\,\langle g_t, w_0 - w_t\rangle, \qquad
      s_t = \beta_3\,s_{t-1} + d_t\,\eta_t\,g_t$$
    $$d_{t+1} = \max(d_t,\; c\,r_t / \|s_t\|_1), \qquad
      w_{t+1} = w_t - \eta_t \left(
      \frac{\mu_t}{\sqrt{\nu_t} + d_{t+1}\,\epsilon} + \lambda\,w_t \right)$$

    The products and norms go over all leaves. ``use_bias_correction=False`` is the
    default of the authors' code: $\eta_t = d_t\,\gamma_t$.

    Args:
        learning_rate: $\gamma$, a factor >= 0 of the estimate: a number, a scalar
            array or tracer, or a schedule.
        betas: $\beta_1$ and $\beta_2$ in [0, 1).
        beta3: $\beta_3$ in [0, 1]; ``None`` means $\sqrt{\beta_2}$.
        eps: $\epsilon$ >= 0, in gradient units.
        estim_lr0: $d_1$ > 0, in parameter units; smaller than any useful step.
        estim_lr_coef: $c$ > 0; 0.5 to 2 are the way to tune it (``d_coef`` of the
            authors' code).
        weight_decay: $\lambda$, decoupled.
        safeguard_warmup: whether $s_t$ sums $d_t^2\,g_t$ instead, so that a warmup's
            small learning rates do not raise the estimate.
        use_bias_correction: whether $\eta_t$ has Adam's correction.
        growth_rate: the most by which $d$ grows in a step once it has left $d_1$, >= 1.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: the learning rate is None; at ``init``, complex parameters.
        ValueError: a number out of range; at ``init``, a glob that selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.prodigy(fg.schedules.cosine(1.0, 10_000))

    References:
        Mishchenko and Defazio, Prodigy: an expeditiously adaptive parameter-free
        learner, 2024, the Adam version, https://arxiv.org/abs/2306.06101. Differs from
        it in: $\eta_t$ has Adam's bias correction by default, as in optax. While all
        gradients or learning rates are zero, $d$ stays (optax: NaN) and moments and
        decay go on (the authors' code skips the step).
    """
    return chain(
        scale_by_prodigy(
            learning_rate,
            betas,
            beta3,
            eps,
            estim_lr0,
            estim_lr_coef,
            weight_decay,
            safeguard_warmup,
            use_bias_correction=use_bias_correction,
            growth_rate=growth_rate,
            mask=mask,
        ),
        scale(-1.0),
    )


def dadapt_adamw(
    learning_rate: Hyper = 1.0,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    eps: Hyper = 1e-8,
    estim_lr0: Scalar = 1e-6,
    weight_decay: Hyper = 0.0,
    *,
    use_bias_correction: bool = True,
    growth_rate: Hyper = float("inf"),
    mask: Selector | None = None,
) -> Transform:
    r"""AdamW by D-Adaptation: its learning rate is an estimate of the distance to go.

    With the estimate $d_t$, $\gamma_t$ the learning rate, $b = \sqrt{\beta_2}$ and
    $\eta_t = d_t\,\gamma_t \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)$,

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,\eta_t\,g_t, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,g_t^2$$
    $$r_t = b\,r_{t-1} + (1 - b)\,\eta_t\,
      \Big\langle g_t, \frac{s_{t-1}}{\sqrt{\nu_{t-1}} + \epsilon}\Big\rangle, \qquad
      s_t = b\,s_{t-1} + (1 - b)\,\eta_t\,g_t$$
    $$d_{t+1} = \max\Big(d_t,\; \frac{r_t}{(1 - b)\,\|s_t\|_1}\Big), \qquad
      w_{t+1} = w_t - \frac{\mu_t}{\sqrt{\nu_t} + \epsilon} - \eta_t\,\lambda\,w_t$$

    The products and norms go over all leaves. ``use_bias_correction=False`` is the
    default of the authors' code: $\eta_t = d_t\,\gamma_t$.

    Args:
        learning_rate: $\gamma$, a factor >= 0 of the estimate: a number, a scalar
            array or tracer, or a schedule.
        betas: $\beta_1$ and $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        estim_lr0: $d_1$ > 0, in parameter units; smaller than any useful step.
        weight_decay: $\lambda$, decoupled.
        use_bias_correction: whether $\eta_t$ has Adam's correction.
        growth_rate: the most by which $d$ grows in a step, >= 1.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: the learning rate is None; at ``init``, complex parameters.
        ValueError: a number out of range; at ``init``, a glob that selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.dadapt_adamw(weight_decay=0.01)

    References:
        Defazio and Mishchenko, Learning-rate-free learning by D-Adaptation, 2023, Adam
        with D-Adaptation, https://arxiv.org/abs/2301.07733. Differs from it in:
        $\eta_t$ has Adam's bias correction by default, as in optax. While all
        gradients or learning rates are zero, $d$ stays (optax: NaN).
    """
    return chain(
        scale_by_dadapt_adam(
            learning_rate,
            betas,
            eps,
            estim_lr0,
            weight_decay,
            use_bias_correction=use_bias_correction,
            growth_rate=growth_rate,
            mask=mask,
        ),
        scale(-1.0),
    )


def dadapt_sgd(
    learning_rate: Hyper = 1.0,
    momentum: Hyper = 0.0,
    estim_lr0: Scalar = 1e-6,
    weight_decay: Hyper = 0.0,
    *,
    growth_rate: Hyper = float("inf"),
    mask: Selector | None = None,
) -> Transform:
    r"""Gradient descent by D-Adaptation: its learning rate is an estimated distance.

    With the estimate $d_t$, $\gamma_t$ the learning rate and
    $\eta_t = d_t\,\gamma_t / \|g_1\|$,

    $$s_t = s_{t-1} + \eta_t\,g_t, \qquad
      d_{t+1} = \max\Big(d_t,\;
      \frac{2 \sum_{i \le t} \eta_i\,\langle g_i, s_{i-1}\rangle}{\|s_t\|}\Big)$$
    $$z_{t+1} = w_1 - s_t, \qquad
      w_{t+1} = \beta\,w_t + (1 - \beta)\,z_{t+1}$$

    The products and norms go over all leaves; twice the sum is
    $\|s_t\|^2 - \sum_i \eta_i^2 \|g_i\|^2$.

    Args:
        learning_rate: $\gamma$, a factor >= 0 of the estimate: a number, a scalar
            array or tracer, or a schedule.
        momentum: $\beta$ in [0, 1], how slowly the parameters follow $z$.
        estim_lr0: $d_1$ > 0, in parameter units; smaller than any useful step.
        weight_decay: $\lambda$, L2: $g_t$ is the gradient plus $\lambda\,w_t$.
        growth_rate: the most by which $d$ grows in a step, >= 1.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: the learning rate is None; at ``init``, complex parameters.
        ValueError: a number out of range; at ``init``, a glob that selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.dadapt_sgd(momentum=0.9)

    References:
        Defazio and Mishchenko, Learning-rate-free learning by D-Adaptation, 2023, SGD
        with D-Adaptation, https://arxiv.org/abs/2301.07733. Differs from it in: a
        first gradient of zero is skipped (the authors' code divides by it), and the
        first norm has the decay in it.
    """
    return chain(
        add_decayed_weights(weight_decay, mask),
        scale_by_dadapt_sgd(
            learning_rate, momentum, estim_lr0, growth_rate=growth_rate
        ),
        scale(-1.0),
    )


def dog(
    learning_rate: Hyper = 1.0,
    init_step: InitStep = ("heuristic", 1e-6),
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    layerwise: bool = False,
    averaging: Hyper | None = None,
) -> Transform:
    r"""DoG: gradient descent with the step distance over gradients.

    $$\bar r_t = \max(r_\epsilon, \max_{s \le t} \|w_s - w_0\|), \qquad
      w_{t+1} = w_t - \gamma_t\,
      \frac{\bar r_t}{\sqrt{\sum_{s \le t} \|g_s\|^2 + \epsilon}}\,g_t$$

    The norms go over all leaves or, ``layerwise`` (LDoG), over each alone. Evaluate at
    an average of the iterates, as the authors urge: ``averaging=8.0``.

    Args:
        learning_rate: $\gamma$, a factor >= 0: a number, a scalar array or tracer, or
            a schedule.
        init_step: the first step, a kind and a number > 0. ``("heuristic", a)`` means
            $r_\epsilon = a (1 + \|w_0\|)$, ``reps_rel`` of the authors' code: 1e-6, or
            1e-4 with batch normalisation. ``("distance", r)`` means
            $r_\epsilon = r$, and ``("learning_rate", eta)`` that $\gamma_0$ times eta
            is the first step size and $r_\epsilon = 0$.
        eps: $\epsilon$ >= 0, in squared gradient units.
        weight_decay: $\lambda$, L2: $g_t$ is the gradient plus $\lambda\,w_t$.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        layerwise: whether each leaf has its own $\bar r_t$ and its own sum.
        averaging: $\gamma$ >= 0 of `fngrad.average_params`, whose average
            `fngrad.eval_params` gives; ``None`` keeps none.

    Raises:
        ValueError: an unknown kind of ``init_step``, or a number out of range; at
            ``init``, a glob that selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.dog(averaging=8.0)

    References:
        Ivgi, Hinder and Carmon, DoG is SGD's best friend: a parameter-free dynamic
        step size schedule, 2023, https://arxiv.org/abs/2302.12022. Differs from it in:
        with ``("learning_rate", eta)`` the learning rate multiplies the first step
        too, as in optax.
    """
    numerics.check_number("averaging", averaging, low=0.0)
    average = () if averaging is None else (average_params(averaging),)
    return chain(
        add_decayed_weights(weight_decay, mask),
        scale_by_dog(init_step, eps, layerwise=layerwise),
        scale_by_learning_rate(learning_rate),
        *average,
    )
