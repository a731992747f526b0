"""The fault campaign: thousands of injected faults, and what became of each."""
