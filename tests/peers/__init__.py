"""The tests of optax and jax, pointed at our functions. None of their code is here."""
