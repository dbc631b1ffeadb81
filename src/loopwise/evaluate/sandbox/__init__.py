"""Running what a model wrote, where it can do no harm: bubblewrap, seccomp and resource limits around a bare Python.

Import from the modules; this package imports none of them.
"""
