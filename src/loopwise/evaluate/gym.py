"""Scores by reasoning-gym (Stojanovski et al. 2025): every generator brings a scorer of its own.

A problem's ``entry`` is one text that holds all a scorer needs, so that it goes through row files, the journal and a
reward's process alike. It is a Python literal: JSON would make lists of tuples and text of numbered keys.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any

from loopwise.errors import ConfigError, nearest

OWN = frozenset({"seed", "size"})
"""Parameters of every generator that loopwise sets by itself."""
EVALUATES = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
"""Generators whose scorers hand an answer to Python's ``eval``, in search of a list."""
PARSES = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
"""Generators whose scorers hand an answer to SymPy's parser, which evaluates it as well."""
_FORMULA = re.compile(r"[\w\s+\-*/^().,=]*", re.ASCII)
_WORD = re.compile(r"[^\W\d]\w*")
_ATTRIBUTE = re.compile(r"\.\s*[^\W\d]")
_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "log", "ln"}
    | {"sqrt", "Abs", "pi", "Integral"}
)


def make_dataset(name: str, parameters: Mapping[str, Any], seed: int = 0, size: int = 1) -> Any:
    """reasoning-gym's dataset ``name``. Raises ConfigError: no such name or parameter, or reasoning-gym's refusal."""
    try:
        from reasoning_gym.composite import DatasetSpec
        from reasoning_gym.factory import DATASETS, create_dataset
    except ModuleNotFoundError as error:
        raise ConfigError(f"tasks of reasoning-gym need it installed: pip install reasoning-gym ({error}).") from None
    if name not in DATASETS:
        raise ConfigError(f'key "data.task": reasoning-gym has no generator "{name}". {nearest(name, DATASETS)}')
    known = {field.name for field in fields(DATASETS[name][1])} - OWN
    for parameter in parameters:
        if parameter not in known:
            raise ConfigError(
                f'key "data.task_options.{parameter}": reasoning_gym:{name} has no such parameter. '
                f"{nearest(parameter, known)}"
            )
    try:
        own = dict(parameters)
        if name == "composite" and "datasets" in own:
            own["datasets"] = [DatasetSpec(**{"weight": 1.0, "config": {}, **spec}) for spec in own["datasets"]]
        return create_dataset(name, seed=seed, size=size, **own)
    except Exception as error:
        said = str(error) or type(error).__name__
        raise ConfigError(
            f'key "data.task_options": reasoning_gym:{name} refuses {dict(parameters)}: {said}. Mend what it names.'
        ) from error


def pack(name: str, parameters: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """The text of an entry of the dataset ``name``, for ``score``. No scorer reads the question: it is left out."""
    kept = {key: value for key, value in entry.items() if key != "question"}
    return repr({"dataset": name, "parameters": _plain(parameters), "entry": _plain(kept)})


def score(packed: str, answer: str) -> float | None:
    """What the scorer of a packed entry gives an answer, 0 to 1; None where ``packed`` holds no entry.

    0 where an answer makes the scorer fail, and where one of EVALUATES or PARSES would run what a model wrote as code.
    """
    try:
        case = ast.literal_eval(packed)
        dataset = _dataset(case["dataset"], repr(case["parameters"]))
        entry = case["entry"]
        source, expected = entry["metadata"]["source_dataset"], entry["answer"]
    except (ValueError, SyntaxError, TypeError, KeyError, ConfigError):
        return None
    if answer != expected:
        answer = answer.strip()
        if not harmless(source, answer):
            return 0.0
    try:
        return float(dataset.score_answer(answer, entry))
    except ImportError:
        raise
    except Exception:  # scorers raise whatever the answer makes their parsers raise
        return 0.0


def harmless(source: str, answer: str) -> bool:
    """Whether the scorer of generator ``source`` may see ``answer``: model text is never run as code."""
    if source in EVALUATES:
        return _is_literal(answer) or not _is_expression(answer)
    if source in PARSES:
        words = _WORD.findall(answer)
        is_formula = _FORMULA.fullmatch(answer) and not _ATTRIBUTE.search(answer)
        return bool(is_formula) and all(len(word) == 1 or word in _FUNCTIONS for word in words)
    return True


@lru_cache(maxsize=64)
def _dataset(name: str, parameters: str) -> Any:
    return make_dataset(name, ast.literal_eval(parameters))


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _is_expression(text: str) -> bool:
    try:
        # eval leaves out blanks at the start, and so must this.
        ast.parse(text.lstrip(" \t"), mode="eval")
    except (ValueError, SyntaxError):
        return False
    except (MemoryError, RecursionError):
        return True
    return True


def _plain(value: Any) -> Any:
    """The same in what ``ast.literal_eval`` reads: NumPy's scalars as Python's, anything foreign as its text."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else [*map(_plain, value)]
    value = value.item() if hasattr(value, "item") else value
    if value is None or type(value) in (bool, int, str):
        return value
    return value if type(value) is float and value - value == 0 else str(value)
