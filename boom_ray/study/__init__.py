"""Grids of conditions as one ledger: what each needs, what was found, and the answer."""
