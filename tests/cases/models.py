"""Cases about data, learning rate, activations, losses and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.cases.base import f32, registry, slope

CASES, case = registry()


@case(
    f32([np.nan, 1.0, 2.0, 3.0, 4.0]),
    url="https://github.com/jax-ml/jax/issues/9040",
    cause="input_data",
    phase="backward",
    root="(input)",
    expected={"value": 7.5, "grad": [0.0, 0.5, 1.0, 1.5, 2.0]},
    note="nanmean handles the value; the slope of the square is 2 * NaN * 0.",
    cure="replace the NaN before squaring",
)
def nanmean_of_squares(x):
    return jnp.nanmean(x**2)  # root


@case(
    f32([4.504745e-07, 5.250624e-07, 4.084355e-07, 9.96921e36]),
    f32([5e-7, 5e-7, 5e-7, 5e-7]),
    url="https://github.com/PCMDI/input4MIPs_CVs/issues/373",
    cause="input_data",
    phase="forward",
    root="integer_pow",
    note="The netCDF fill value left in an ozone field: the squared error overflows.",
    cure="treat sentinels as missing",
)
def netcdf_fill_value(x, y):
    return jnp.mean((x - y) ** 2)  # root


@case(
    f32(3.0),
    url="https://github.com/CharlieDinh/pFedMe/issues/11",
    cause="learning_rate",
    phase="update",
    root="integer_pow",
    also=("mul",),
    loop_index=4,
    note="Gradient descent on x**4/4 with rate 0.5 from 3; stable rates are below 2/9.",
    cure="lower rate, or clip the step",
)
def quartic_bowl_overshoot(x):
    def body(s):
        i, x = s
        g = jax.grad(lambda v: v**4 / 4)(x)  # root
        return i + 1, x - 0.5 * g

    return lax.while_loop(lambda s: s[0] < 20, body, (0, x))[1]


@case(
    f32([0.0, 0.5]),
    f32([0.1, -0.1, 0.2, 0.0]),
    url="https://github.com/amazon-far/holosoma/issues/25",
    cause="learning_rate",
    phase="update",
    root="log",
    loop_index=1,
    note="With rate 1 the first step makes sigma negative; the next takes a log.",
    cure="sigma = softplus(rho); lower rate",
)
def sigma_steps_below_zero(theta, x):
    def nll(t):
        z = (x - t[0]) / t[1]
        return jnp.mean(0.5 * z**2 + jnp.log(t[1]))  # root

    def step(t, _):
        value, g = jax.value_and_grad(nll)(t)
        return t - 1.0 * g, value

    return lax.scan(step, theta, None, length=5)[1]


@case(
    f32([20.0, 50.0, 100.0]),
    url="https://github.com/tracel-ai/burn/issues/5373",
    cause="activation",
    phase="forward",
    root="exp",
    expected={"value": [20.0, 50.0, 100.0]},
    note="Softplus by its definition (also the hidden term of an RBM free energy).",
    cure="max(x, 0) + log1p(exp(-|x|))",
)
def softplus_log_one_plus_exp(x):
    return jnp.log(1.0 + jnp.exp(x))  # root


@case(
    f32([np.inf, 1.0, 2.0]),
    url="https://github.com/jax-ml/jax/pull/21501",
    cause="activation",
    phase="forward",
    root="sub",
    expected={"value": [1.0, 0.0, 0.0]},
    convention=True,
    note="Softmax with a logit of +inf (an action that must be taken): inf - inf.",
    cure="treat +inf as the whole mass",
)
def softmax_of_infinite_logit(logits):
    return jax.nn.softmax(logits)  # root


@case(
    f32([20.0, -3.0]),
    f32([1.0, 0.0]),
    url="https://github.com/keras-team/keras/issues/198",
    cause="loss",
    phase="forward",
    root="log",
    expected={"value": 0.02429368},
    oracle=lambda: {"value": (np.log1p(np.exp(-20.0)) + np.log1p(np.exp(-3.0))) / 2},
    note="Cross-entropy once the network is sure and right: (1 - 1) * log(1 - 1).",
    cure="max(z, 0) - z*y + log1p(exp(-|z|)) from the logits z",
)
def bce_on_saturated_sigmoid(logits, y):
    @jax.jit
    def loss(z):
        p = jax.nn.sigmoid(z)
        return -jnp.mean(y * jnp.log(p) + (1.0 - y) * jnp.log(1.0 - p))  # root

    return loss(logits)


def _entropy_oracle():
    def f(z):
        return np.sum(np.logaddexp(0, z) - z / (1 + np.exp(-z)))

    z = np.array([40.0, 1.0])
    return {"value": f(z), "grad": slope(f, z)}


@case(
    f32([40.0, 1.0]),
    url="https://github.com/pyro-ppl/numpyro/issues/1696",
    cause="loss",
    phase="backward",
    root="div",
    also=("log1p",),
    expected={"value": 0.58220309, "grad": [0.0, -0.19661194]},
    oracle=_entropy_oracle,
    note="The value is right at p = 1; the gradient is an infinite slope times 0.",
    cure="entropy from the logit: softplus(z) - z*sigmoid(z)",
)
def bernoulli_entropy_saturated(z):
    p = jax.nn.sigmoid(z)
    taken = -jax.scipy.special.xlogy(p, p)
    other = -jax.scipy.special.xlog1py(1.0 - p, -p)  # root
    return jnp.sum(taken + other)


@case(
    f32([2.0, 2.0, 2.0]),
    f32([1.0, 2.0, 4.0]),
    url="https://github.com/NVIDIA-Genomics-Research/AtacWorks/pull/104",
    cause="loss",
    phase="forward",
    root="div",
    expected={"value": 1.0},
    convention=True,
    note="1 - Pearson correlation when the network predicts one constant.",
    cure="divide by where(denominator > 0, denominator, 1)",
)
def pearson_constant_prediction(pred, y):
    a, b = pred - jnp.mean(pred), y - jnp.mean(y)
    length = jnp.sqrt(jnp.sum(a**2)) * jnp.sqrt(jnp.sum(b**2))
    return 1.0 - jnp.sum(a * b) / length  # root


@case(
    f32([0.0, 1.0]),
    url="https://github.com/facebookresearch/higher/issues/17",
    cause="gradient",
    phase="backward",
    root="div",
    expected={"value": 0.999001, "grad": [1000.0, 0.000998]},
    oracle=lambda: {"value": 1 / 1.001, "grad": [1e3, 1e-3 / 1.001**2]},
    rtol=1e-3,
    note="Derivative of one Adam step with respect to a gradient that is exactly 0.",
    cure="sqrt(v + tiny), or a square root with slope 0 at 0",
)
def meta_gradient_through_adam(g):
    m, v = 0.1 * g, 0.001 * g**2
    return jnp.sum((m / 0.1) / (jnp.sqrt(v / 0.001) + 1e-3))  # root


@case(
    {"a": f32([3e20, 0.0]), "b": f32([4e20])},
    url="https://github.com/tensorflow/tensorflow/pull/27733",
    cause="gradient",
    phase="update",
    root="integer_pow",
    expected={"value": {"a": [0.6, 0.0], "b": [0.8]}},
    rtol=1e-3,
    note="Clipping that adds (norm - norm) to the scale; only the squares overflow.",
    cure="norm scaled by the largest entry",
)
def global_norm_with_finite_check_trick(grads):
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))  # root
    scale = jnp.minimum(1.0, 1.0 / norm) + (norm - norm)
    return jax.tree.map(lambda g: g * scale, grads)
