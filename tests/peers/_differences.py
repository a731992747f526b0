"""Where a peer's test and our function differ on purpose: part of its name -> why."""

DIFFERENCES = {
    "optax": {},
    "jax": {},
}
