"""Tests of `jaxsafe.tune`."""
