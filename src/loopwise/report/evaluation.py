"""An evaluation on disk: a JSON file, or a folder with JSON, Markdown and a figure, written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopwise.report.evaluation_figure import evaluation_figure
from loopwise.report.evaluation_markdown import evaluation_markdown
from loopwise.runs.files import TEMPORARY, fsync, replace_file, to_json

JSON, MARKDOWN, FIGURE = "evaluation.json", "evaluation.md", "evaluation.svg"


def write_evaluation(out: Path, found: Mapping[str, Any]) -> None:
    """Write what ``evaluate_model`` found: figures alone into a .json file, all forms into a folder of another name.

    Whatever goes wrong leaves nothing at ``out``.
    """
    if out.suffix.lower() == ".json":
        replace_file(out, lambda temporary: _write(temporary, to_json(found, indent=2)))
        return
    drawing = evaluation_figure(found)
    contents = {JSON: to_json(found, indent=2), MARKDOWN: evaluation_markdown(found, FIGURE if drawing else None)}
    if drawing:
        contents[FIGURE] = drawing
    temporary = out.with_name(f"{TEMPORARY}{out.name}")
    try:
        temporary.mkdir()
        for name, content in contents.items():
            _write(temporary / name, content)
            fsync(temporary / name)
        fsync(temporary)
        os.rename(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync(out.parent)


def _write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")
