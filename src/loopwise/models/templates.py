"""Templates of what a model is shown, as ``{prompt}{draft}``, and the text that takes their named places."""

from __future__ import annotations

import re

from loopwise.types import Completion, Prompt


def fill(template: str, **values: str) -> str:
    """The template with each ``{name}`` that is among ``values`` replaced by its text; all other braces stay.

    Nothing is looked for inside the values, so that a draft may spell ``{critique}``.

    >>> fill("{prompt}{draft} {as it is}", prompt="1+1=", draft="{prompt}")
    '1+1={prompt} {as it is}'
    """
    if not values:
        return template
    names = "|".join(map(re.escape, values))
    return re.sub("{(" + names + ")}", lambda found: values[found[1]], template)


def transcript(content: Prompt | Completion, between: str = "\n\n") -> str:
    """A prompt or a completion as one text: itself, or its messages after the names of their roles."""
    if isinstance(content, str):
        return content
    return between.join(f"{message['role']}: {message['content']}" for message in content)
