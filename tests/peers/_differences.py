"""Where a peer's test and our function differ on purpose: part of its name -> why."""

DIFFERENCES = {
    "optax": {
        "GeneralizedKLDivergenceTest::test_deprecated_alias": (
            "convex_kl_divergence is a plain alias here and warns of nothing"
        ),
    },
    "jax": {},
}
