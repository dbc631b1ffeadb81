"""Scores by reasoning-gym (Stojanovski et al. 2025): every generator brings a scorer of its own.

A problem's ``entry`` is one text that holds all a scorer needs, so that it goes through row files, the journal and a
reward's process alike. It is a Python literal: JSON would make lists of tuples and text of numbered keys.
"""

from __future__ import annotations

import ast
import builtins
import keyword
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from importlib import import_module
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
EVALUATES_ENTRY = frozenset(
    {"bitwise_arithmetic", "intermediate_integration", "number_sorting", "polynomial_multiplication"}
    | {"simple_integration"}
)
"""Generators whose scorers do the same with a part of the entry, which may come from a row file."""
REPEATS = frozenset({"rubiks_cube", "rush_hour"})
"""Generators whose scorers make every move as often as the number in it says."""
MOST_BITS = 4096
"""Size up to which a formula is evaluated: of its value and of each part, numerator and denominator together."""
MOST_MOVES = 10_000
"""Moves that an answer to one of REPEATS may ask for."""
_FORMULA = re.compile(r"[\w\s+\-*/^().,<>]*", re.ASCII)
_HEXADECIMAL = re.compile(r"(?:0x[\da-f]+|[\s+\-*()<>])*", re.ASCII)
_LONG_EXPONENT = re.compile(r"e[+-]?\d{4}", re.IGNORECASE)
_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "log", "ln"}
    | {"sqrt", "Abs", "pi", "Integral"}
)
_GROWING = frozenset({"exp", "sinh", "cosh", "tanh"})


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

    What a model or a row file wrote is never run as code: the score is 0 where ``harmless`` refuses the answer, and
    None where the entry holds such a thing. It is 0 as well where an answer makes the scorer fail.
    """
    try:
        case = ast.literal_eval(packed)
        name, entry = case["dataset"], case["entry"]
        dataset = _dataset(name, repr(case["parameters"]))
        expected, metadata = entry["answer"], entry["metadata"]
        while name == "composite":  # it hands an entry on to the member that the entry names
            name = metadata["source_dataset"]
            dataset = dataset.datasets[name]
        if not _harmless_entry(name, expected, metadata):
            return None
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError, ConfigError):
        return None
    if answer != expected:
        answer = answer.strip()
    # What string_insertion expects is a word, which eval would look up; its scorer compares first.
    if not harmless(name, answer) and (name != "string_insertion" or answer != expected):
        return 0.0
    try:
        return float(dataset.score_answer(answer, entry))
    except ImportError:
        raise
    except Exception:  # scorers raise whatever the answer makes their parsers raise
        return 0.0


def harmless(name: str, answer: str) -> bool:
    """Whether the scorer of generator ``name`` may see ``answer``: it runs no code, and takes neither time nor memory.

    ``name`` has to be that of the scorer that runs; what an entry says of its source is only text.
    """
    if name in EVALUATES:
        return _is_harmless_list(answer)
    if name in PARSES:
        return _is_formula(answer)
    if name == "coin_flip":  # read as a fraction, which writes powers of ten out; its scorer leaves out commas
        return not _LONG_EXPONENT.search(re.sub("[,_]", "", answer))
    if name in REPEATS:
        counts = re.findall(r"\d+", answer)
        return all(len(count) < 6 for count in counts) and sum(map(int, counts)) <= MOST_MOVES
    return True


def _harmless_entry(name: str, expected: Any, metadata: Mapping[str, Any]) -> bool:
    """Whether what the scorer of generator ``name`` evaluates of an entry is what it should be."""
    if name == "number_sorting":
        return isinstance(expected, str) and _is_harmless_list(expected)
    if name == "bitwise_arithmetic":
        problem = metadata["problem"]
        return isinstance(problem, str) and bool(_HEXADECIMAL.fullmatch(problem)) and _is_formula(problem)
    if name in EVALUATES_ENTRY:
        return _is_formula(expected if name == "polynomial_multiplication" else metadata["integrand"])
    return True


@lru_cache(maxsize=64)
def _dataset(name: str, parameters: str) -> Any:
    return make_dataset(name, ast.literal_eval(parameters))


def _is_harmless_list(text: str) -> bool:
    """Whether ``eval`` finds a literal in a text, or nothing at all."""
    return _is_literal(text) or not _is_expression(text)


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


def _is_formula(text: Any) -> bool:
    """Whether SymPy's parser may see ``text``: numbers, symbols, known functions, and a value of at most MOST_BITS."""
    if not isinstance(text, str) or not _FORMULA.fullmatch(text):
        return False
    try:
        _size(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, SyntaxError, OverflowError, MemoryError, RecursionError):
        return False
    return True


def _size(node: ast.expr) -> tuple[float, float]:
    """Bounds, as logarithms to base 2, of a formula's absolute value and of its denominator; symbols count as 2.

    They also bound what is left where symbols cancel: ``2**(x - x + 10**9)`` is as large as it looks. Raises
    ValueError or OverflowError where a part is larger than MOST_BITS, and ValueError where one is no formula.
    """
    match node:
        case ast.Constant(value=bool()):
            raise ValueError("no number")
        case ast.Constant(value=int() | float() as value):
            size = math.log2(max(1, abs(value))), math.log2(value.as_integer_ratio()[1])
        case ast.Name(id=word) if _is_known(word):
            size = 1.0, 0.0
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            size = _size(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant() as right):
            power = 2.0 ** _size(right)[0]
            value, denominator = _size(left)
            size = value * power, denominator * power
        case ast.BinOp(left=left, op=op, right=right):
            size = _combined(op, *_size(left), *_size(right))
        case ast.Call(func=ast.Name(id=word), args=[_, *_] as arguments, keywords=[]) if word in _FUNCTIONS:
            sizes = [_size(argument) for argument in arguments]
            size = _applied(word, max(value for value, _ in sizes), max(denominator for _, denominator in sizes))
        case _:
            raise ValueError("no formula")
    if sum(size) > MOST_BITS:
        raise ValueError("too large")
    return size


def _combined(op: ast.operator, value: float, denominator: float, other: float, below: float) -> tuple[float, float]:
    """``_size`` of two parts (left, then right) joined by an operator."""
    match op:
        case ast.Add() | ast.Sub() | ast.BitXor():
            return max(value, other) + 1, denominator + below
        case ast.Mult():
            return value + other, denominator + below
        case ast.Div() | ast.FloorDiv():
            return value + below, denominator + other + below
        case ast.Pow():  # an exponent below 0 turns the base over
            return max(value, denominator) * 2.0**other, (value + denominator) * 2.0**other
        case ast.LShift():
            return value + 2.0**other, denominator
        case ast.RShift():
            return value, denominator
    raise ValueError("no formula")


def _applied(function: str, value: float, denominator: float) -> tuple[float, float]:
    """``_size`` of a function of arguments of that size. SymPy makes ``9**k`` of ``exp(k*log(9))``."""
    if function in _GROWING:
        return 2 * 2.0**value, 2 * 2.0**value
    if function in ("log", "ln"):
        return math.log2(1 + value + denominator), 0.0
    return value, denominator


def _is_known(word: str) -> bool:
    """Whether SymPy's parser takes a word for a symbol, or for one of the functions that answers need."""
    if len(word) == 1 or word in _FUNCTIONS:
        return True
    sympy = import_module("sympy")
    return not (hasattr(sympy, word) or hasattr(builtins, word) or keyword.iskeyword(word) or "__" in word)


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
