"""Where a peer's test and our function differ on purpose: part of its name -> why."""

DIFFERENCES = {
    "optax": {
        "GeneralizedKLDivergenceTest::test_deprecated_alias": (
            "convex_kl_divergence is a plain alias here and warns of nothing"
        ),
    },
    "jax": {
        "testScipySpecialFun_softmax": "axis is -1 by default, as in jax.nn",
        "testScipySpecialFun_log_softmax": "axis is -1 by default, as in jax.nn",
        "testGradOfEntrAtZero": "at a singular point the gradient is 0, not infinite",
        "testLogSumExpNans": (
            "without a jit, jax_debug_nans stops at intermediate results of formulas "
            "that select: -inf - -inf of an empty part"
        ),
        "testLogSumExp": "real floating numbers only: others are refused, not promoted",
        "testDotProductAttention": "there is no return_residual",
        "testGeluIntType": "floating numbers only: integers are refused, not promoted",
        "testSoftplusZero": "floating numbers only: integers are refused, not promoted",
        "testLogMeanExp": "the mean of nothing is -inf, as its logsumexp is, not NaN",
        "testSoftmaxGradFlag": (
            "counts what is saved for the backward pass with a flag of jax that "
            "chooses between two formulas; ours is a third one"
        ),
    },
    "sklearn": {
        "test_standard_scaler_callback_support[fit]": (
            "their fit hands a copy of itself to a callback before ours has learned; "
            "that copy answers in float64, ours in float32"
        ),
        "test_standard_scaler_sample_weight[array-Xw1-X1-sample_weight1]": (
            "compares repeated rows, ours in float32, with weighted ones, theirs in "
            "float64, to 1e-7"
        ),
    },
}
