"""What every way of learning says of itself, and keys that several share."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from loopwise.config.blocks import Block

TokensPerPass: Any = Field(
    8192, ge=1, description="padded tokens a forward pass, the dial of memory; a longer row goes alone"
)
Threshold: Any = Field(1.0, description="a sample passes with a total reward of at least this")
Reference = Literal["base", "accepted", "adapters_off"]
REFERENCE = "compared with: the run's base, the policy the round starts from, or the weights below the adapters"


class Method(Block):
    """An ``update`` block: beside its keys, what a run has to know of the method whichever it is."""

    trains: ClassVar[bool] = True
    """Whether it takes optimizer steps. A method that takes none changes the prompt."""
    imitates_rows: ClassVar[bool] = False
    """Whether its batches are single rows, labelled ones and samples alike, so that a step can be tried before any
    sample is drawn."""

    @property
    def compares_samples(self) -> bool:
        """Whether it learns from how the samples of one problem differ, so that a problem needs two or more."""
        return False

    @property
    def reads_words(self) -> bool:
        """Whether it learns from what critics say."""
        return False

    @property
    def uses_gold(self) -> bool:
        """Whether it learns from the problems' own completions."""
        return False

    def most_samples(self, problems: int, samples: int) -> int:
        """Texts that a round of so many problems draws at most, ``samples`` of each; 0 where it draws none."""
        return problems * samples
