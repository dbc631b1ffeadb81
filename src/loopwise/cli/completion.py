"""What the shell offers at a Tab: found on disk or by name, without loading anything heavy."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

JOURNAL = "journal.db"
CONFIG = "config.json"
"""What makes a folder a run's, and a model's. The modules that own these names load torch."""
DEPTH = 2
_GENERATOR = re.compile(r'(?:^DATASET_NAME = |\bregister_dataset\(\s*)"(\w+)"', re.MULTILINE)
MOST = 100
"""Names offered at once."""


def recipe_files(incomplete: str) -> list[str]:
    """YAML files and folders that begin so."""
    return [name for name, path in _entries(incomplete) if name.endswith("/") or path.suffix in (".yaml", ".yml")]


def shipped_recipes(incomplete: str) -> list[str]:
    """Recipes that come with loopwise."""
    from loopwise.recipes.catalogue import names

    return [name for name in names() if name.startswith(incomplete)]


def run_folders(incomplete: str) -> list[str]:
    """Folders that hold a run."""
    return _folders_with(incomplete, (JOURNAL,))


def models(incomplete: str) -> list[str]:
    """Folders that hold a run or a model."""
    return _folders_with(incomplete, (JOURNAL, CONFIG))


def tasks(incomplete: str) -> list[str]:
    """Built-in tasks; the generators of reasoning-gym once their prefix is begun."""
    from loopwise.tasks.gym import PREFIX
    from loopwise.tasks.registry import TASKS

    begun = incomplete and PREFIX.startswith(incomplete[: len(PREFIX)])
    names = (f"{PREFIX}{name}" for name in _generators()) if begun else (*TASKS, PREFIX)
    return [name for name in names if name.startswith(incomplete)]


def _generators() -> list[str]:
    """The generators of reasoning-gym, read off its sources: importing it takes seconds."""
    package = importlib.util.find_spec("reasoning_gym")
    folders = package.submodule_search_locations if package else None
    sources = (path.read_text(encoding="utf-8") for folder in folders or () for path in Path(folder).rglob("*.py"))
    return sorted({name for source in sources for name in _GENERATOR.findall(source)})


def _folders_with(incomplete: str, files: Sequence[str]) -> list[str]:
    """Folders that begin so, or a few below one that does, with one of these files in them."""
    found = (
        name.removesuffix("/") + folder.as_posix().removeprefix(path.as_posix())
        for name, path in _entries(incomplete)
        for folder in _holders(path, files, DEPTH)
    )
    return list(islice(found, MOST))


def _holders(folder: Path, files: Sequence[str], depth: int) -> Iterator[Path]:
    if any((folder / file).is_file() for file in files):
        yield folder
    elif depth:
        for name, path in _entries(f"{folder.as_posix()}/"):
            if name.endswith("/"):
                yield from _holders(path, files, depth - 1)


def _entries(incomplete: str) -> Iterator[tuple[str, Path]]:
    """Files and folders whose path begins so; a folder's ends in a slash. Hidden ones only where a dot is typed."""
    above, slash, begun = incomplete.rpartition("/")
    folder = Path((above + slash) or ".")
    try:
        listed = sorted(os.listdir(folder))
    except OSError:
        return
    for name in listed:
        if name.startswith(begun) and (begun or not name.startswith(".")):
            path = folder / name
            yield above + slash + name + ("/" if path.is_dir() else ""), path
