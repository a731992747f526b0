"""What jaxsafe costs and how accurate it is, measured: `python -m benchmarks`."""
