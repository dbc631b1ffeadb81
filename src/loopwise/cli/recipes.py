"""``loopwise recipes``: list, copy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loopwise.cli.common import JsonAlone, check_new_file, console, errors, group, show_json
from loopwise.cli.completion import shipped_recipes

app = group("Recipes that come with loopwise, to start from.")


@app.command("list")
def recipes_list(as_json: JsonAlone = False) -> None:
    """Every recipe with its command and what it does."""
    with errors():
        from loopwise.recipes.catalogue import catalogue

        found = catalogue()
        if as_json:
            show_json([recipe.as_dict() for recipe in found])
        else:
            from loopwise.console import recipe_table

            console().print(recipe_table(found))


@app.command("copy")
def recipes_copy(
    name: Annotated[str, typer.Argument(help="Name of a recipe.", autocompletion=shipped_recipes)],
    to: Annotated[Path | None, typer.Option("--to", help="New file. Default: NAME.yaml, here.")] = None,
) -> None:
    """Copy a recipe, ready to be changed and run."""
    with errors():
        from loopwise.recipes.catalogue import find_recipe

        recipe = find_recipe(name)
        target = to or Path(f"{recipe.name}.yaml")
        check_new_file(target, "--to")
        with target.open("x", encoding="utf-8") as file:
            file.write(recipe.text)
        typer.echo(f"{target}: run it with `loopwise {recipe.command} {target}`")
        for base in recipe.builds_on:
            typer.echo(f"It builds on the recipe {base}: `loopwise recipes copy {base}`.")
