"""Flax layers with stable statistics: a batch goes in, activations come out.

Drop-ins for flax's own, one module per API, imported on their own because flax is
heavy: `jaxsafe.layers.nnx` and `jaxsafe.layers.linen`. Built from `ops`.
"""

__all__: list[str] = []
