"""What the tests and the benchmarks share: small models, force fields with known answers, checks.

Whoever writes a backbone, a solver or a signal outside this package can prove it with the same checks.
"""
