"""Where a peer's test and our function differ on purpose: part of its name -> why."""

DIFFERENCES = {
    "optax": {
        "GeneralizedKLDivergenceTest::test_deprecated_alias": (
            "convex_kl_divergence is a plain alias here and warns of nothing"
        ),
        "NtxentTest::test_batched": (
            "optax's ntxent broadcasts [n, 1, d] against [1, n, d]; ours wants equal "
            "shapes, because [n] against [n, 1] is a classic silent bug"
        ),
    },
    "jax": {},
}
