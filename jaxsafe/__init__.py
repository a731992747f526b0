"""NaN and Inf in JAX training: prevent, contain, name, cure."""
