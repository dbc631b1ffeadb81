"""The problem streams of a recipe: what is trained on, what is held out, what is labelled. Never overlapping."""

from __future__ import annotations

from loopwise.config.blocks import DataConfig
from loopwise.data.streams import check_disjoint
from loopwise.errors import ConfigError
from loopwise.tasks.base import SKILL, Streams
from loopwise.tasks.generated import generated_streams
from loopwise.tasks.row_files import row_file_streams


def open_streams(data: DataConfig, seed: int, *, supervised: bool) -> Streams:
    """Read or generate all problems of a recipe and check that no held-out one is among the rest.

    ``supervised`` (``loopwise tune``) learns the train rows' completions. Raises DataError, OverlapError, ConfigError.
    """
    streams = generated_streams(data, seed) if data.task else row_file_streams(data, seed, supervised=supervised)
    if supervised and not streams.labelled:
        raise ConfigError(
            "data.labelled: this task needs the number of labelled problems to learn from, for example 250."
        )
    held_out = {name: problems for name, problems in streams.held_out.items() if not name.startswith(SKILL)}
    check_disjoint((), {"labelled": streams.labelled, **held_out}, streams.key)
    # Old skills may share problems with each other and with dev, which the gate sees too; never with what is learned.
    for name in streams.held_out.keys() - held_out.keys():
        check_disjoint((), {"labelled": streams.labelled, name: streams.held_out[name]})
    return streams
