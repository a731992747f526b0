"""The causes of NaN, as a table: the look, the reason, the cure, the experiment.

One of the project's two tables of knowledge (the other is the catalog of safe
functions). `diagnose` answers in its terms; README's cause table, the experiments and
the report read it. `group` is the row of README's table, one of the four things a user
can act on.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One way in which a training step turns non-finite.

    Attributes:
      id: short name, the key of `CAUSES`.
      group: what to act on: input data, learning rate, activation or loss.
      symptom: what a user sees.
      explanation: why it happens.
      remedies: code or settings to try, the best first.
      experiment: name of the file under `experiments/` that shows it.

    >>> from jaxsafe import diagnose
    >>> diagnose.CAUSES["loss"].group
    'loss'
    """

    id: str
    group: str
    symptom: str
    explanation: str
    remedies: tuple[str, ...]
    experiment: str


_ROWS = (
    Cause(
        id="input_data",
        group="input data",
        symptom="The very first loss is NaN, or one batch out of many is.",
        explanation=(
            "A missing, infinite or sentinel value is in an argument; every sum over "
            "it is non-finite."
        ),
        remedies=(
            'cleaner = jaxsafe.clean.fit(train_data, impute="mean")',
            "batch = jaxsafe.clean.apply(cleaner, batch)",
            "print(jaxsafe.clean.audit(batch).summary())",
        ),
        experiment="input_data",
    ),
    Cause(
        id="learning_rate",
        group="learning rate",
        symptom="The loss grows for some steps, then overflows.",
        explanation=(
            "The step is longer than the curvature allows, so every step overshoots "
            "further than the one before."
        ),
        remedies=(
            "optax.warmup_cosine_decay_schedule(0.0, peak_value, warmup_steps, steps)",
            "tx = jaxsafe.transforms.guarded(optax.adamw(3e-4), max_norm=1.0)",
            "use a lower rate",
        ),
        experiment="learning_rate",
    ),
    Cause(
        id="activation",
        group="activation",
        symptom="NaN in the output of a layer although its input is finite.",
        explanation="A hand-written activation exponentiates a large number.",
        remedies=(
            "p = jaxsafe.ops.softmax(x, axis=-1)",
            "logp = jaxsafe.ops.log_softmax(x, axis=-1)",
            "lse = jaxsafe.ops.logsumexp(x, axis=-1)",
        ),
        experiment="activation",
    ),
    Cause(
        id="loss",
        group="loss",
        symptom="The loss is infinite once the model is sure of a wrong answer.",
        explanation="The logarithm of a probability that has rounded to 0.",
        remedies=(
            "jaxsafe.losses.softmax_cross_entropy_with_integer_labels(logits, labels)",
            "jaxsafe.losses.sigmoid_binary_cross_entropy(logits, labels)",
        ),
        experiment="loss",
    ),
    Cause(
        id="gradient",
        group="learning rate",
        symptom="The loss is finite, the gradient overflows or has an infinite slope.",
        explanation=(
            "Products of many Jacobians grow without bound, or a derivative is taken "
            "where the slope is infinite."
        ),
        remedies=(
            "optax.chain(jaxsafe.transforms.clip_by_global_norm(1.0), tx)",
            "y = jaxsafe.ops.sqrt(x)  # slope 0, not infinite, at 0",
        ),
        experiment="exploding_gradient",
    ),
    Cause(
        id="domain",
        group="activation",
        symptom="NaN from log, sqrt, arccos or a division.",
        explanation=(
            "The argument is outside the real domain of the function or at its pole."
        ),
        remedies=(
            "y = jaxsafe.ops.log(x)",
            "y = jaxsafe.ops.sqrt(x)",
            "y = jaxsafe.ops.divide(x, y)",
            "y = jaxsafe.ops.arccos(x)  # clamps what rounding put outside [-1, 1]",
            "y = jaxsafe.ops.logit(p)",
        ),
        experiment="loss",
    ),
    Cause(
        id="overflow",
        group="activation",
        symptom="Inf from exp, a power or a product of finite numbers.",
        explanation="The result does not fit into the dtype.",
        remedies=(
            "work with logarithms: jaxsafe.ops.logsumexp, jaxsafe.ops.log_softmax",
            "y = jaxsafe.ops.exp(x)  # ends at the largest number, with slope 0",
            "y = jaxsafe.ops.softplus(x)",
            "bound the argument, for example x = limit * jnp.tanh(x / limit)",
        ),
        experiment="activation",
    ),
    Cause(
        id="cancellation",
        group="activation",
        symptom="A variance or a distance comes out negative, its root NaN.",
        explanation=(
            "The difference of two nearly equal large numbers is all rounding error."
        ),
        remedies=(
            "v = jaxsafe.ops.var(x, axis=-1)",
            "y = jaxsafe.ops.standardize(x, axis=-1)",
            "y = jaxsafe.ops.norm(a - b, axis=-1)",
            "layer = jaxsafe.layers.nnx.LayerNorm(features, rngs=rngs)",
        ),
        experiment="low_precision",
    ),
    Cause(
        id="mask",
        group="activation",
        symptom="Value finite, gradient NaN; or one fully masked row is NaN.",
        explanation=(
            "`where` drops the bad value, but its derivative multiplies 0 by infinity; "
            "a row with nothing left in it has no maximum and no mean."
        ),
        remedies=(
            "p = jaxsafe.ops.softmax(x, axis=-1, where=mask)",
            "y = jaxsafe.ops.where(ok, f, x, 0.0)  # f sees only what it may see",
            "y = jaxsafe.ops.dot_product_attention(query, key, value, mask=mask)",
        ),
        experiment="masked_row",
    ),
    Cause(
        id="norm",
        group="activation",
        symptom="NaN in the gradient of a norm, a standard deviation or x / |x|.",
        explanation="The vector is zero (or constant): its length has no direction.",
        remedies=(
            "n = jaxsafe.ops.norm(x, axis=-1)",
            "u = jaxsafe.ops.normalize(x, axis=-1)",
            "s = jaxsafe.ops.std(x, axis=-1)",
            "h = jaxsafe.ops.hypot(x, y)",
        ),
        experiment="flax_module",
    ),
    Cause(
        id="linalg",
        group="activation",
        symptom="NaN from solve, cholesky, eigh or svd.",
        explanation="The matrix is singular, not positive, or has equal eigenvalues.",
        remedies=(
            "factor, info = jaxsafe.ops.cholesky(A)  # adds the least ridge that helps",
            "x, info = jaxsafe.ops.solve(A, b)  # least squares where A is singular",
            "values, vectors = jaxsafe.ops.eigh(A)  # finite slopes at equal values",
        ),
        experiment="activation",
    ),
    Cause(
        id="precision",
        group="activation",
        symptom="Fine in float32, Inf or NaN in float16.",
        explanation=(
            "float16 ends at 65504 and loses everything below 6e-8: sums overflow and "
            "epsilons vanish."
        ),
        remedies=(
            "compute in float32 and keep only storage in float16, or use bfloat16",
            "y = jaxsafe.ops.saturate_cast(x, jnp.float16)",
            "jaxsafe.losses.softmax_cross_entropy_with_integer_labels(logits, labels)",
        ),
        experiment="low_precision",
    ),
)

CAUSES: dict[str, Cause] = {row.id: row for row in _ROWS}
