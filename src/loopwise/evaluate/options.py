"""The options of a rule or a source, checked against the keywords of the function that builds it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from loopwise.errors import ConfigError, nearest


def check_options(whose: str, parameters: Mapping[str, inspect.Parameter], options: Mapping[str, Any]) -> None:
    """Raise ConfigError where an option is none of ``parameters``, or one without a default is missing."""
    for option in options:
        if option not in parameters:
            raise ConfigError(f'{whose}: unknown option "{option}". {nearest(option, parameters)}')
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise ConfigError(f'{whose}: option "{option}" is missing. Add it under "options:".')
