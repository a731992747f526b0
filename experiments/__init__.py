"""What breaks training, and what cures it, on real data: `python -m experiments`.

One file for each cause; `full_run` has everything wrong at once. Each file shows the
broken run, what today's tools say of it, what jaxsafe says, and the cured run.
"""
