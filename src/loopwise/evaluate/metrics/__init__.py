"""Metrics of text: each a reward of one sample, and figures of a whole set."""
