"""Benchmarks: loopwise beside its rivals, in one run on one machine. ``make bench`` runs them."""
