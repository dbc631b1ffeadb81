"""Functions from a user's file: ``path/to/file.py:function``. Standard library only, as reward workers start on it."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from loopwise.errors import ConfigError


def import_file(path: Path, name: str) -> ModuleType:
    """Run a Python file as module ``name``. Raises ImportError where it is none, and whatever its code raises."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load_function(use: str, key: str) -> Callable[..., Any]:
    """The function that ``use`` names, imported into this process; modules beside its file can be imported by it.

    ``key`` is where the recipe names it. Raises ConfigError where file or function is missing, or the file fails.
    """
    file, colon, name = use.rpartition(":")
    path = Path(file).absolute()
    if not colon or path.suffix != ".py" or not path.is_file():
        raise ConfigError(f'key "{key}": there is no Python file {path}. Write path/to/file.py:function.')
    if str(path.parent) not in sys.path:
        # Last, so that a file beside it never stands in for a library.
        sys.path.append(str(path.parent))
    try:
        module = import_file(path, f"loopwise_user_{path.stem}")
    except (Exception, SystemExit) as error:
        raise ConfigError(f'key "{key}": {path} cannot be loaded: {failure(error, path)}. Mend it.') from error
    function = getattr(module, name, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
        raise ConfigError(f'key "{key}": {path} has no function "{name}". Its functions: {", ".join(names) or "none"}.')
    return function  # type: ignore[no-any-return]  # callable, which mypy cannot tell of an attribute


def failure(error: BaseException, path: str | Path) -> str:
    """What a user's code raised, and on which line of its file, in words for an error."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(Path(path).absolute())
    ]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    where = f" (line {line})" if line else ""
    return f"{type(error).__name__}: {str(error)[:200].rstrip('.')}{where}"
