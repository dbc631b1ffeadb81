"""The options of a rule or a source: against the keywords of the function that builds it, and one by one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
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


def require(whose: str, kind: type, /, **options: Any) -> None:
    """Raise ConfigError where an option is no text (``str``), no true or false (``bool``) or no whole number."""
    for option, value in options.items():
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            expected = {str: "text", bool: "true or false", int: "a whole number"}[kind]
            raise wrong(whose, option, expected, value)


def require_text(whose: str, /, **options: Any) -> None:
    """Raise ConfigError where an option is no text, or an empty one."""
    for option, value in options.items():
        if not isinstance(value, str) or not value.strip():
            raise wrong(whose, option, "text", value)


def require_labels(whose: str, /, **options: Any) -> None:
    """Raise ConfigError where an option is neither letters, as "ABCD", nor a list of texts."""
    for option, value in options.items():
        if not value or not isinstance(value, Sequence) or not all(isinstance(x, str) and x.strip() for x in value):
            raise wrong(whose, option, "letters or a list of texts", value)


def require_one_of(whose: str, option: str, value: Any, known: Sequence[str]) -> None:
    """Raise ConfigError where an option is none of the known words."""
    if value not in known:
        raise wrong(whose, option, f"one of {', '.join(known)}", value)


def require_number(
    whose: str, least: float = -math.inf, most: float = math.inf, /, *, whole: bool = False, **options: Any
) -> None:
    """Raise ConfigError where an option is no finite number, no ``whole`` one, or not from ``least`` to ``most``."""
    kinds: Any = int if whole else int | float
    for option, value in options.items():
        fit = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        if not fit or not least <= value <= most:
            number = "a whole number" if whole else "a number"
            if most < math.inf:
                number += f" from {least:g} to {most:g}"
            elif least > -math.inf:
                number += f" of at least {least:g}"
            raise wrong(whose, option, number, value)


def wrong(whose: str, option: str, expected: str, found: Any) -> ConfigError:
    """The error of an option that is not what it must be."""
    return ConfigError(f'{whose}: option "{option}" must be {expected}, found {found!r}.')
