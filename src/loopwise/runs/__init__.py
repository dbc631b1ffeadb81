"""The run's memory: journal, checkpoints, state, lock, and the pause when the disk is full.

Import from the modules (``loopwise.runs.journal``, ``loopwise.runs.checkpoint`` …): this package imports none of them,
so that nothing heavy loads before it is used.
"""
