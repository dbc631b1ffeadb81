"""The pages say what is so: examples parse, links lead somewhere, the tour names the files that exist."""

from __future__ import annotations

import doctest
import importlib
import re
import runpy
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from tests.docs.documents import PAGES, READMES, ROOT, code_blocks, named_files, tour

from loopwise.cli import app
from loopwise.config.reading import load_recipe, parse_recipe
from loopwise.config.recipes import COMMANDS, ImproveRecipe
from loopwise.recipes.catalogue import ShippedRecipe, catalogue

DOCTESTED = ("loopwise", "loopwise.evaluate.stats", "loopwise.models.prompts", "loopwise.runtime")
UNLISTED = {".gitignore"}
MAP = ROOT / "docs" / "map.md"
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@pytest.mark.parametrize("name", DOCTESTED)
def test_docstring_examples_are_true(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0


def test_the_page_of_recipe_keys_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "recipe_docs.py"))
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"](), "run python scripts/recipe_docs.py"


@each_page
def test_python_in_pages_compiles(page: Path) -> None:
    for block in code_blocks(page, "python"):
        compile("\n" * block.line + block.text, str(page), "exec")


@each_page
def test_recipes_in_pages_parse(page: Path) -> None:
    for name, text in named_files(page).items():
        if name.endswith(".yaml"):
            parse_recipe(recipe_kind(page, name), yaml.safe_load(text), f"{page.name}, {name}")


@each_page
def test_commands_in_pages_are_understood(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for block in code_blocks(page, "bash"):
        for line in block.commands:
            program, *arguments = shlex.split(line)
            if program == "make":
                assert set(arguments) <= set(targets), line
            elif program == "loopwise":
                parse_command(arguments)


def test_a_wrong_command_is_not_understood() -> None:
    with pytest.raises(Exception, match=r"(?i)no such option"):
        parse_command(["improve", "my.yaml", "--nowhere"])


@pytest.mark.parametrize("recipe", catalogue(), ids=lambda recipe: recipe.name)
def test_shipped_recipes_parse(recipe: ShippedRecipe) -> None:
    load_recipe(COMMANDS[recipe.command], ROOT / f"src/loopwise/recipes/{recipe.name}.yaml")


@each_page
def test_links_in_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http:", "https:")):
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(linked), f"{page.name}: {target}"


@pytest.mark.parametrize("page", [*READMES, MAP], ids=lambda page: page.name)
def test_the_tour_names_exactly_the_files_that_exist(page: Path) -> None:
    entries = tour(page)
    branches = {path for path in entries if any(other != path and other.startswith(path) for other in entries)}
    leaves = entries.keys() - branches
    files = {file for file in repository_files() if Path(file).name != "__init__.py"} - UNLISTED
    files -= {page.name} if page in READMES else set()
    missing = sorted(file for file in files if not any(file == leaf or is_below(file, leaf) for leaf in leaves))
    extra = sorted(
        leaf for leaf in leaves - {page.name} if not any(file == leaf or is_below(file, leaf) for file in files)
    )
    assert not missing, f"{page.name} has no line for {missing}"
    assert not extra, f"{page.name} names what is not there: {extra}"
    assert not [leaf for leaf in leaves if not entries[leaf]], "a line without words"


def test_the_map_has_a_line_for_every_file_of_the_package() -> None:
    folders = [path for path in tour(MAP) if path.startswith("src/loopwise/") and path.endswith("/")]
    inner = [path for path in folders if not any(other.startswith(path) and other != path for other in tour(MAP))]
    assert inner == ["src/loopwise/runs/migrations/", "src/loopwise/recipes/"]


def test_both_readmes_have_the_same_parts() -> None:
    english, chinese = READMES
    assert tour(english).keys() - {chinese.name} == tour(chinese).keys() - {english.name}
    assert [depth for depth, _ in headings(english)] == [depth for depth, _ in headings(chinese)]
    shown = [
        [(block.language, without_comments(block.text)) for block in code_blocks(page) if block.language]
        for page in READMES
    ]
    assert shown[0] == shown[1]


def test_the_loop_in_the_readme_is_the_loop() -> None:
    source = without_indent((ROOT / "src/loopwise/loop.py").read_text(encoding="utf-8"))
    (shown,) = [block.text for block in code_blocks(READMES[0], "python") if block.text.startswith("while")]
    assert without_indent(shown) in source


def parse_command(arguments: list[str]) -> None:
    """Have the command line read arguments without running anything. Raises where it would refuse them."""
    command = typer.main.get_command(app)
    while arguments and arguments[0] in getattr(command, "commands", {}):
        name, *arguments = arguments
        command = command.commands[name]  # type: ignore[attr-defined]
    command.make_context(command.name, list(arguments))


def recipe_kind(page: Path, name: str) -> Any:
    """The kind of recipe that a file of a page is: that of the command the page runs on it, or improve's."""
    command = re.search(rf"^loopwise (\w+) {re.escape(name)}\b", page.read_text(encoding="utf-8"), re.MULTILINE)
    return COMMANDS[command[1]] if command else ImproveRecipe


def repository_files() -> list[str]:
    """Files that are in the repository or would be at the next commit."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [file for file in listed.stdout.splitlines() if (ROOT / file).exists()]


def is_below(file: str, folder: str) -> bool:
    return folder.endswith("/") and file.startswith(folder)


def headings(page: Path) -> list[tuple[int, str]]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [(len(match[1]), match[2]) for match in re.finditer(r"^(#+) (.+)$", text, re.MULTILINE)]


def anchors(page: Path) -> set[str]:
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for _, title in headings(page)}


def without_comments(text: str) -> str:
    """Code without its comments, which each language words for itself; a file's name stays."""
    return "\n".join(
        line if re.match(r"# \S+\.\w+$", line) else line.partition("#")[0].rstrip() for line in text.splitlines()
    )


def without_indent(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())
