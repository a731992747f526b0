"""Cases about domains, overflow, cancellation, masks, norms, matrices, precision."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from tests.cases.base import bf16, f16, f32, registry, slope

CASES, case = registry()


@case(
    f32(1e-25),
    f32(1e-25),
    url="https://github.com/jax-ml/jax/issues/18605",
    cause="domain",
    phase="backward",
    root="div",
    expected={"value": 0.7853982, "grad": 5e24},
    note="Angle of a very short vector: x**2 + y**2 underflows in the derivative.",
    cure="scale both arguments by the larger one before squaring",
)
def arctan2_tiny_arguments(y, x):
    return jnp.arctan2(y, x)  # root


def _half_turn_oracle():
    def f(r):
        return 0.5 * np.sqrt(1 + r[0, 0] - r[1, 1] - r[2, 2])

    return {"value": 1.0, "grad": slope(f, np.diag([1.0, -1.0, -1.0]))}


@case(
    f32([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]]),
    url="https://github.com/kornia/kornia/issues/1653",
    cause="domain",
    phase="backward",
    root="integer_pow",
    also=("div",),
    expected={
        "value": 1.0,
        "grad": [[0.125, 0.0, 0.0], [0.0, -0.125, 0.0], [0.0, 0.0, -0.125]],
    },
    oracle=_half_turn_oracle,
    note="Quaternion of a half turn: the branch that where drops divides by sqrt(0).",
    cure="guard the radicand of every branch",
)
def quaternion_from_half_turn(R):
    trace = R[0, 0] + R[1, 1] + R[2, 2]
    s_w = 2.0 * jnp.sqrt(1.0 + trace)
    s_x = 2.0 * jnp.sqrt(1.0 + R[0, 0] - R[1, 1] - R[2, 2])
    return jnp.where(trace > 0.0, (R[2, 1] - R[1, 2]) / s_w, 0.25 * s_x)  # root


@case(
    f32([0.0, 128.0, 255.0]),
    url="https://github.com/phlippe/uvadlc_notebooks/issues/93",
    cause="domain",
    phase="forward",
    root="log",
    note="A flow takes the logit of pixels without squeezing them into (0, 1) first.",
    cure="logit(alpha/2 + (1 - alpha) * (x + u)/256)",
)
def logit_of_saturated_pixel(pixels):
    p = pixels / 255.0
    z = jnp.log(p) - jnp.log(1.0 - p)  # root
    log_det = jnp.sum(-jnp.log(p) - jnp.log(1.0 - p))
    return jnp.sum(-0.5 * z**2) + log_det


@case(
    f32([0.0, -1.0, -2.0]),
    f32([-150.0, -1.5, -2.0]),
    f32([0.0, 1.0, -1.0]),
    url="https://github.com/radixark/miles/pull/1363",
    cause="overflow",
    phase="forward",
    root="exp",
    expected={"value": -0.06666667},
    oracle=lambda: {"value": -(min(np.exp(0.5), 1.2) - 1.0 + 0.0) / 3},
    note="PPO: one stale token has log-ratio 150 and advantage 0, so inf * 0.",
    cure="clip the log-ratio before exp",
)
def ppo_ratio_zero_advantage(logp, logp_old, adv):
    ratio = jnp.exp(logp - logp_old)  # root
    clipped = jnp.clip(ratio, 0.8, 1.2)
    return -jnp.mean(jnp.minimum(ratio * adv, clipped * adv))


@case(
    f32([0.0, 1.0]),
    f32([100.0, 0.1]),
    f32([0.5, 0.0]),
    url="https://github.com/gisilvs/AEF/pull/6",
    cause="overflow",
    phase="forward",
    root="exp",
    expected={"value": [0.5, 1.1051709]},
    note="Affine coupling with an unbounded scale; 0 * exp(100) should be 0.",
    cure="bound the log-scale, s = c*tanh(s/c)",
)
def affine_coupling_scale(x, s, t):
    return x * jnp.exp(s) + t  # root


@case(
    f32([0.5, 0.2]),
    f32([0.1, 120.0]),
    url="https://github.com/vanderschaarlab/synthcity/issues/331",
    cause="overflow",
    phase="forward",
    root="exp",
    note="KL term of a VAE whose encoder says 120: the true value is 6.5e51.",
    cure="bound logvar before exp",
)
def vae_logvar_explosion(mu, logvar):
    return -0.5 * jnp.sum(1.0 + logvar - mu**2 - jnp.exp(logvar))  # root


@case(
    f32([[100.3, 200.7], [100.3, 200.71]]),
    url="https://github.com/pytorch/pytorch/issues/37154",
    cause="cancellation",
    phase="forward",
    root="sqrt",
    expected={"value": [[0.0, 0.01], [0.01, 0.0]]},
    rtol=1e-2,
    atol=1e-2,
    note="|a|**2 + |b|**2 - 2ab of (almost) equal points is negative after rounding.",
    cure="subtract first, or clip at 0 under the square root",
)
def cdist_by_expansion(x):
    sq = jnp.sum(x**2, axis=1)
    return jnp.sqrt(sq[:, None] + sq[None, :] - 2.0 * x @ x.T)  # root


_ACTIVATIONS = [4.9375, 4.96875, 4.75, 4.875, 5.03125, 4.875, 4.8125, 4.9375]


def _standardized_oracle():
    x = np.array(_ACTIVATIONS)
    return {"value": ((x - x.mean()) / np.sqrt(x.var() + 1e-5)).tolist()}


@case(
    bf16(_ACTIVATIONS),
    url="https://github.com/tenstorrent/tt-metal/issues/45968",
    cause="cancellation",
    phase="forward",
    root="rsqrt",
    expected={
        "value": [0.4125, 0.7878, -1.8387, -0.3380, 1.5384, -0.3380, -1.0885, 0.4125]
    },
    oracle=_standardized_oracle,
    rtol=5e-2,
    atol=5e-2,
    note="E[x**2] - E[x]**2 in bfloat16 for activations with mean 5 and spread 0.1.",
    cure="two-pass variance accumulated in float32",
)
def bf16_variance_of_activations(x):
    mean = jnp.mean(x)
    var = jnp.mean(x * x) - mean * mean
    return (x - mean) * lax.rsqrt(var + 1e-5)  # root


@case(
    f32([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]),
    url="https://github.com/jax-ml/jax/issues/347",
    cause="mask",
    phase="backward",
    root="div",
    expected={
        "value": 8.236068,
        "grad": [[0.4472136, 0.8944272], [0.6, 0.8], [0.0, 0.0]],
    },
    oracle=lambda: {
        "value": np.sqrt(5) + 5 + 1,
        "grad": [[1 / np.sqrt(5), 2 / np.sqrt(5)], [0.6, 0.8], [0, 0]],
    },
    note="Short rows are replaced afterwards; remat runs into the same trap again.",
    cure="replace the sum of squares before the square root",
)
def row_norm_then_where(x):
    @jax.checkpoint
    def f(x):
        r = jnp.sqrt(jnp.sum(x**2, axis=1))  # root
        return jnp.sum(jnp.where(r > 0.5, r, 1.0))

    return f(x)


@case(
    f32([0.5, 0.0]),
    f32([1.0, 2.0]),
    url="https://github.com/sail-sg/jax_xc/pull/28",
    cause="mask",
    phase="backward",
    root="log",
    expected={"value": -0.34657359, "grad": [0.30685282, 0.0]},
    convention=True,
    oracle=lambda: {"value": 0.5 * np.log(0.5), "grad": [np.log(0.5) + 1, 0.0]},
    note="rho*log(rho) with lax.select for empty grid cells, gradient under vmap.",
    cure="double select, or an xlogy-style primitive",
)
def xc_energy_empty_cell(rho, weight):
    def cell(r, w):
        return w * lax.select(r > 0, r * jnp.log(r), jnp.zeros_like(r))  # root

    return jnp.sum(jax.vmap(cell)(rho, weight))


def _attention_oracle():
    s = 1 / (1 + np.exp(1.0))
    return {"value": s, "grad": [[s * (1 - s), -s * (1 - s)], [0, 0]]}


@case(
    f32([[1.0, 2.0], [3.0, -1.0]]),
    np.array([[True, True], [False, False]]),
    url="https://github.com/pytorch/pytorch/pull/131060",
    cause="mask",
    phase="backward",
    root="sub",
    expected={
        "value": 0.26894143,
        "grad": [[0.19661194, -0.19661194], [0.0, 0.0]],
    },
    oracle=_attention_oracle,
    note="The masked row is zeroed after the softmax; its gradient is NaN.",
    cure="make the row harmless before the softmax",
)
def attention_row_zeroed_after(scores, mask):
    bias = jnp.where(mask, 0.0, -jnp.inf)
    p = jax.nn.softmax(scores + bias, axis=-1)  # root
    p = jnp.where(mask.any(-1, keepdims=True), p, 0.0)
    return jnp.sum(p[:, 0])


@case(
    f32([3.0, 3.0, 3.0, 3.0]),
    url="https://github.com/jax-ml/jax/issues/11716",
    cause="norm",
    phase="backward",
    root="div",
    expected={"value": 0.0, "grad": [0.0] * 4},
    convention=True,
    note="Standard deviation of equal numbers: infinite slope at variance 0.",
    cure="sqrt(var) with slope 0 at 0, or use the variance",
)
def std_of_constant_vector(x):
    return jnp.std(x)  # root


@case(
    f32([3e20, 4e20]),
    url="https://github.com/PaddlePaddle/Paddle/pull/13664",
    cause="norm",
    phase="forward",
    root="integer_pow",
    expected={"value": 5e20},
    note="The squares leave float32 although the norm itself fits.",
    cure="scale by max|x| before squaring",
)
def norm_of_huge_vector(g):
    return jnp.sqrt(jnp.sum(g**2))  # root


@case(
    f32([0.0] * 8),
    url="https://github.com/speechbrain/speechbrain/pull/184",
    cause="norm",
    phase="backward",
    root="div",
    expected={"value": 0.0, "grad": [0.0] * 8},
    convention=True,
    note="Magnitude spectrum of a silent frame, used as a reconstruction loss.",
    cure="square root with slope 0 at 0, or the power spectrum",
)
def silent_frame_magnitude(frame):
    z = jnp.fft.rfft(frame)
    mag = jnp.sqrt(z.real**2 + z.imag**2)  # root
    return jnp.mean(mag)


_DUMMIES = [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]


@case(
    f32(_DUMMIES),
    f32([1.0, 2.0, 3.0, 4.0]),
    url="https://github.com/Jfortin1/neuroCombat/issues/13",
    cause="linalg",
    phase="forward",
    root="custom_linear_solve",
    also=("triangular_solve", "div", "lu"),
    expected={"value": [1.6666667, 0.3333333, 1.3333333]},
    convention=True,
    oracle=lambda: {
        "value": np.linalg.pinv(np.array(_DUMMIES)) @ np.array([1.0, 2, 3, 4])
    },
    rtol=1e-3,
    note="An intercept and a full set of dummy columns: X^T X is singular.",
    cure="least squares by SVD, drop a column, or a ridge term",
)
def collinear_normal_equations(X, y):
    return jnp.linalg.solve(X.T @ X, X.T @ y)  # root


@case(
    f32([[0.0, 0.0], [0.0, 0.0]]),
    f32([1.0, 1.0]),
    url="https://github.com/google/compare_gan/issues/9",
    cause="linalg",
    phase="forward",
    root="div",
    loop_index=0,
    expected={"value": [0.0, 0.0]},
    convention=True,
    note="Power iteration of a weight that is still zero: W^T u has no direction.",
    cure="divide by norm + eps",
)
def spectral_norm_of_zero_weight(W, x):
    def body(_, u):
        v = W.T @ u
        v = v / jnp.linalg.norm(v)  # root
        u = W @ v
        return u / jnp.linalg.norm(u)

    u = lax.fori_loop(0, 3, body, jnp.array([1.0, 0.0]))
    sigma = u @ (W @ (W.T @ u)) / jnp.linalg.norm(W.T @ u)
    return (W / sigma) @ x


@case(
    f16([1.0, -2.0, 0.5]),
    f16([0.0, 0.0, 0.0]),
    url="https://github.com/google-deepmind/optax/issues/1754",
    cause="precision",
    phase="update",
    root="div",
    expected={"value": [1.0, -2.0, 0.5]},
    note="The epsilon of adam, 1e-8, is 0 in float16, so a zero gradient is 0/0.",
    cure="add epsilon in float32, or use one above 6e-8",
)
def adam_float16_idle_weight(params, grads):
    opt = optax.adam(1e-3)
    updates, _ = opt.update(grads, opt.init(params), params)  # root
    return optax.apply_updates(params, updates)


@case(
    f16([[1.0, 0.5], [0.25, 2.0]]),
    np.array([[False, False], [True, True]]),
    url="https://github.com/google/flax/issues/982",
    cause="precision",
    phase="forward",
    root="convert_element_type",
    expected={"value": [[0.0, 0.0], [0.1480, 0.8520]]},
    convention=True,
    rtol=1e-2,
    atol=1e-2,
    note="A bias of -1e10 cast to float16 is -inf, and one row is all padding.",
    cure="mask in float32, or with a finite number of the dtype",
)
def float16_attention_bias(scores, mask):
    zeros = jnp.full(mask.shape, 0.0).astype(scores.dtype)
    low = jnp.full(mask.shape, -1e10).astype(scores.dtype)  # root
    return jax.nn.softmax(scores + lax.select(mask, zeros, low), axis=-1)


@case(
    f16([[256.0, 130.0, 90.0]]),
    f16([[180.0], [100.0], [80.0]]),
    url="https://github.com/huggingface/transformers/issues/5651",
    cause="precision",
    phase="forward",
    root="dot_general",
    expected={"value": [[66280.0]]},
    rtol=1e-2,
    note="A feed-forward block in float16 reaches 66280, just above 65504.",
    cure="accumulate and keep the residual stream in bfloat16 or float32",
)
def t5_feed_forward_float16(h, w):
    class Out(nn.Module):
        @nn.compact
        def __call__(self, h):
            half = {"dtype": jnp.float16, "param_dtype": jnp.float16}
            return nn.Dense(1, use_bias=False, **half)(h)  # root

    return Out().apply({"params": {"Dense_0": {"kernel": w}}}, h)
