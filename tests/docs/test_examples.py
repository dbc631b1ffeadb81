"""The examples of the pages do what the pages say, run as written but on a few small problems."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import runpy
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.docs.documents import READMES, ROOT, code_blocks, named_files
from typer.testing import CliRunner

from loopwise.cli import app
from loopwise.config.blocks import RewardConfig
from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe
from loopwise.errors import IncompatibleError
from loopwise.evaluate.loading import load_feedback
from loopwise.types import Problem, Sample, Updated

TINY = {
    "pretrain": ["model.depth=1", "rounds=1", "update.steps=2", "update.batch_size=2", "runtime.threads=1"],
    "tune": ["data.labelled=8", "data.dev=8", "data.test=8", "update.steps=2", "runtime.threads=1"],
    "evaluate": ["--problems", "4"],
}
TINY_IMPROVE = {
    "data": {"train": "sums.jsonl", "dev": 8, "test": 8},
    "problems": 4,
    "samples": 2,
    "update": {"method": "rft", "steps": 1, "batch_size": 4},
    "runtime": {"threads": 1},
}
SUMS = {
    "model": {"create": "demo"},
    "data": {"task": "addition", "dev": 20, "test": 0},
    "rewards": ["exact_match"],
    "sampling": {"max_tokens": 5},
    "runtime": {"threads": 1},
}


def test_the_worked_example_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("src", "docs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for name, text in named_files(READMES[0]).items():
        write(tmp_path / name, text)
    recipe = tmp_path / "runs/sums.yaml"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text(encoding="utf-8")) | TINY_IMPROVE), "utf-8")
    for block in code_blocks(READMES[0]):
        if block.language == "bash":
            for line in block.commands:
                run_command(line)
        elif block.language == "python" and block.text.startswith("import loopwise"):
            exec(compile(block.text, "README.md", "exec"), {})
    for out in ("better", "from-python", "pages"):
        assert (tmp_path / "runs" / out / "model" / "model.safetensors").is_file()
        listed = readme_table("What a run leaves")
        assert not [name for name in listed if not (tmp_path / "runs" / out / name).exists()]


def test_the_rewards_of_the_page(tmp_path: Path) -> None:
    page = ROOT / "docs/rewards.md"
    file = write(tmp_path / "my_rewards.py", named_files(page)["my_rewards.py"])

    def judge(function: str, problem: Problem, text: str) -> Any:
        config = RewardConfig(use=f"{file}:{function}")
        with load_feedback([config], reference_columns=(), label_free=False) as feedback:
            return asyncio.run(feedback.check([problem], [sample(problem, text)]))

    sums = Problem("1", "2+2=", {"answer": "4"})
    right = judge("right", sums, "it is 4")
    assert right.totals.tolist() == [1.0]
    assert right.extra[0]["found"] == "4"
    assert right.metrics["empty"] == 0.0
    assert math.isnan(judge("right", Problem("1", "2+2=", {"answer": None}), "it is 4").totals[0])
    assert judge("brief", sums, "x" * 150).totals.tolist() == [0.25]
    assert judge("asked", sums, "2+2=4").totals.tolist() == [0.0]
    chat = Problem("2", ({"role": "user", "content": "Write JSON."},))
    assert judge("valid_json", chat, "[1]").totals.tolist() == [1.0]
    assert judge("valid_json", chat, "[1").totals.tolist() == [0.0]


def test_the_update_of_the_page_learns(tmp_path: Path) -> None:
    from loopwise.stages.improve import improve

    update = load_example(tmp_path, "my_update.py")["PolicyGradient"]()

    def sevens(completions: list[str], **columns: Any) -> list[float]:
        return [text.count("7") / 5 for text in completions]

    recipe = parse_recipe(ImproveRecipe, {**SUMS, "problems": 8, "rounds": 3})
    result = improve(recipe, tmp_path / "out", update=update, rewards=[sevens])
    rewards = [row["reward"] for row in result.summary["rounds"]]
    assert len(rewards) == 3
    assert rewards[-1] > 2 * rewards[0]


def test_the_generator_of_the_page_serves_a_search_for_prompts(tmp_path: Path) -> None:
    from loopwise.models.policy import Policy
    from loopwise.stages.improve import improve

    class Remember:
        """Adds a lesson to the prompt."""

        needs = frozenset({"text"})

        def __call__(self, policy: Any, state: Any, problems: Any, rollout: Any, context: Any) -> Updated:
            rollout(policy, problems, k=2)
            lesson = replace(policy.prompt_state, memory=("carry",))
            return Updated(replace(policy, prompt_state=lesson), None, {})

    async def complete(prompt: str, sampling: Any, seed: int) -> str:
        first, second = (int(number[::-1]) for number in prompt.split()[-1].rstrip("=").split("+"))
        return f"{first + second:04d}"[::-1] if "- carry" in prompt else "0000"

    generator = load_example(tmp_path, "my_generator.py")["Remote"](complete)
    recipe = parse_recipe(ImproveRecipe, {**SUMS, "problems": 3, "rounds": 1})
    result = improve(recipe, tmp_path / "out", update=Remember(), generator=generator, policy=Policy())
    assert result.summary["stages"]["base"]["dev"]["accuracy"] == 0.0
    assert result.summary["stages"]["improved"]["dev"]["accuracy"] == 1.0
    with pytest.raises(IncompatibleError, match="needs token_ids, weights"):
        improve(recipe, tmp_path / "refused", generator=generator)


def run_command(line: str) -> None:
    """Run a line of a README's shell block; set-up and ``make`` are left to the person."""
    program, *arguments = shlex.split(line)
    if program == "loopwise":
        result = CliRunner().invoke(app, [*arguments, *TINY.get(arguments[0], [])])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    elif program == "python":
        script, redirect, target = arguments
        assert redirect == ">"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            runpy.run_path(script)
        write(Path(target), printed.getvalue())
    else:
        assert line.startswith(("make ", ". .venv/")), line


def readme_table(heading: str) -> list[str]:
    """The names in the first column of the table under a heading."""
    section = READMES[0].read_text(encoding="utf-8").partition(f"# {heading}\n")[2].partition("\n#")[0]
    names = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert names
    return names


def load_example(folder: Path, name: str) -> dict[str, Any]:
    return runpy.run_path(str(write(folder / name, named_files(ROOT / "docs/extending.md")[name])))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def sample(problem: Problem, text: str) -> Sample:
    return Sample("s", problem.id, group=0, index=0, policy_id="p", text=text, finish_reason="stop")
