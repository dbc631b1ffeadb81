"""Writes docs/recipes.md, every key of a recipe with default and meaning, from the models of loopwise.config.

Run from the repository: ``python scripts/recipe_docs.py``. ``tests/docs/`` fails where the page is out of date.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from loopwise.blocks import (
    Block,
    BudgetConfig,
    CorpusConfig,
    CurriculumConfig,
    DataConfig,
    GateConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    RewardConfig,
    RFTConfig,
    RowsConfig,
    RuntimeConfig,
    SamplingConfig,
    SFTConfig,
    SourceConfig,
    TokenizerConfig,
)
from loopwise.config import ImproveRecipe, PretrainRecipe, TuneRecipe
from loopwise.evaluate.rules import RULES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"

HEAD = """\
# Every key of a recipe

Written by `scripts/recipe_docs.py` from `src/loopwise/blocks.py` and `config.py`: change those, not this page.

A recipe is a YAML file. `loopwise pretrain`, `tune` and `improve` read one kind each; their blocks are shared.

- Unknown keys are refused, and the nearest known one is named.
- Any key can be changed on the command line by its dotted name, such as `update.optimizer.lr=1e-4`.
- Relative paths are taken from the recipe's own folder.
"""

TITLES: Mapping[type[Block], str] = {
    ImproveRecipe: "A recipe for `loopwise improve`",
    TuneRecipe: "A recipe for `loopwise tune`",
    PretrainRecipe: "A recipe for `loopwise pretrain`",
    ModelConfig: "`model`",
    TokenizerConfig: "`model.tokenizer`",
    LoraConfig: "`model.lora`",
    DataConfig: "`data` of tune and improve",
    RowsConfig: "An entry of `data.train` of tune and improve",
    CorpusConfig: "`data` of pretrain",
    SourceConfig: "An entry of `data.train` of pretrain",
    RewardConfig: "An entry of `rewards` or `report_rewards`",
    SamplingConfig: "`sampling`",
    RFTConfig: "`update` of improve",
    SFTConfig: "`update` of tune",
    PretrainConfig: "`update` of pretrain",
    CurriculumConfig: "`curriculum`",
    OptimizerConfig: "`update.optimizer`",
    GateConfig: "`gate`",
    BudgetConfig: "`budget`",
    RuntimeConfig: "`runtime`",
}

NOTES: Mapping[type[Block], str] = {
    ModelConfig: (
        "A plain text is short for `path`: `model: ./my-model`. The keys from `depth` to `tokenizer` shape a model "
        "that is created; one that is loaded has its own."
    ),
    RowsConfig: "A plain text is short for `path`.",
    SourceConfig: "A plain text is short for `path`.",
    RewardConfig: "A plain text is short for `use`: `rewards: [number]`.",
    DataConfig: (
        "Name `train` or `task`. A number under `dev` or `test` takes so many of the train rows out, or generates so "
        "many of the task; without one it is a tenth of the rows, at most 1,000, or 1,000 of the task. 0 leaves the "
        "split out."
    ),
}

# Meanings of keys whose field in config.py has no description of its own.
MEANINGS: Mapping[type[Block], Mapping[str, str]] = {
    ImproveRecipe: {
        "model": "the model to start from",
        "data": "problems to learn on, and those held out",
        "update": "how a round is learned from",
        "rounds": "turns of the loop",
        "sampling": "how completions are drawn",
        "gate": "when a round is rolled back",
        "seed": "every draw, split and batch is a pure function of it",
        "runtime": "the machine",
        "budget": "limits that end the run early",
    },
    TuneRecipe: {
        "model": "the model to start from",
        "data": "rows to learn, and those held out",
        "update": "how the rows are learned",
        "rewards": "what scores held-out answers where `gate.metric` is `reward`",
        "sampling": "how held-out answers are drawn",
        "gate": "when a round is rolled back",
        "seed": "every split and batch is a pure function of it",
        "runtime": "the machine",
        "budget": "limits that end the run early",
    },
    PretrainRecipe: {
        "model": "the model to train, usually one created",
        "data": "text to train on, and text held out",
        "update": "how the text is learned",
        "sampling": "how the samples are drawn",
        "gate": "when a round is rolled back",
        "seed": "every draw, split and window is a pure function of it",
        "runtime": "the machine",
        "budget": "limits that end the run early",
    },
    ModelConfig: {
        "path": "a Hugging Face folder with config, safetensors weights and tokenizer, or a hub name",
        "dropout": "of embeddings, attention and residuals, in training",
    },
    LoraConfig: {"rank": "of the two matrices that make an adapter", "dropout": "of the adapters' input, in training"},
    RowsConfig: {
        "path": "row file, datasets folder or hub name",
        "format": "the shape of its rows",
        "prompt_column": "column that holds the prompt",
        "completion_column": "column that holds the completion to learn",
    },
    SourceConfig: {"path": "file, folder of files, datasets folder or hub name"},
    PretrainConfig: {"optimizer": "optimizer and schedule"},
    RewardConfig: {
        "use": "a built-in rule (below), `module.function` or `path/to/file.py:function`",
        "weight": "its factor in the sum",
    },
    SamplingConfig: {
        "max_tokens": "longest completion",
        "temperature": "0 is greedy; held-out answers always are",
        "top_p": "draw from the smallest set of tokens with this probability; 1 keeps all",
        "top_k": "draw from so many likeliest tokens; 0 keeps all",
        "stop": "texts that end a completion and are cut off",
    },
    RFTConfig: {"method": "rejection-sampling fine-tuning"},
    SFTConfig: {"method": "supervised fine-tuning", "optimizer": "optimizer and schedule"},
    OptimizerConfig: {
        "name": "Muon drives the matrices inside the blocks (an LSTM and adapters have none), AdamW everything else",
        "lr": "AdamW's learning rate",
        "matrix_lr": "Muon's learning rate",
        "betas": "AdamW's decay rates of its two moments",
        "weight_decay": "decoupled",
        "momentum": "Muon's",
        "schedule": "of all rounds together (of each round under `restart`), times the warm-up",
        "warmup_steps": "linear, from the start of the run",
    },
    GateConfig: {
        "confidence": "of the one-sided bound on the paired difference",
        "enabled": "false: every round is accepted, losses are only reported",
    },
    BudgetConfig: {
        "tokens_generated": "tokens sampled, held-out answers included",
        "tokens_trained": "tokens read in training, prompts included",
        "seconds": "wall time, over all resumes",
        "judge_calls": "samples judged",
    },
    RuntimeConfig: {
        "device": "`cpu`, `cuda`, `cuda:1` …; `auto` takes a GPU where there is one",
        "keep_checkpoints": "newest checkpoints kept",
    },
}

COLUMNS = "| key | type | default | meaning |\n| --- | --- | --- | --- |"

RULES_HEAD = """\
## Built-in rewards

The rules that `rewards` may name, and their `options`. None: not judged, masked, never counted as 0.

| rule | options | passes where |
| --- | --- | --- |
"""


def page() -> str:
    """The text of docs/recipes.md. Raises ValueError where a key has no meaning, or has two."""
    return "\n".join([HEAD, *map(_section, TITLES), RULES_HEAD + "\n".join(_rules()) + "\n"])


def _section(block: type[Block]) -> str:
    rows = "\n".join(_row(block, name, field) for name, field in block.model_fields.items())
    note = f"{NOTES[block]}\n\n" if block in NOTES else ""
    intro = (block.__doc__ or "").partition("\n")[0].replace("``", "`")
    return f"## {TITLES[block]}\n\n{intro}\n\n{note}{COLUMNS}\n{rows}\n"


def _row(block: type[Block], name: str, field: FieldInfo) -> str:
    cells = (f"`{name}`", _type(field), _default(field), _meaning(block, name, field))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _meaning(block: type[Block], name: str, field: FieldInfo) -> str:
    owners = [base for base in block.__mro__ if name in MEANINGS.get(base, {})]
    if bool(owners) == bool(field.description):
        found = "two meanings: remove the one here" if owners else "no meaning: describe it in config.py or here"
        raise ValueError(f"{block.__name__}.{name} has {found}")
    return MEANINGS[owners[0]][name] if owners else str(field.description)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**needed**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Block):
        changed = ", ".join(f"{name}: {getattr(value, name)}" for name in sorted(value.model_fields_set))
        return f"its own, with `{changed}`" if changed else "its own"
    if value is None or value == () or value == {}:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _type(field: FieldInfo) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None
    ]
    return ", ".join([_words(field.annotation), *limits])


def _words(annotation: Any) -> str:
    """A type in words a reader of YAML knows."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _words(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(part) for part in arguments if part is not type(None))
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        inner = _words(arguments[0])
        return f"list of {inner}" if arguments[-1] is Ellipsis else f"list of {len(arguments)} {inner}s"
    if isinstance(annotation, type) and issubclass(annotation, Block):
        return f"[block](#{_anchor(TITLES[annotation])})"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(annotation, "keys and values")


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9_ -]", "", title.lower()).replace(" ", "-")


def _rules() -> Iterator[str]:
    for name, rule in RULES.items():
        parameters = inspect.signature(rule.build).parameters.values()
        options = ", ".join(f"`{p.name}`" + ("" if p.default is p.empty else f" = `{p.default}`") for p in parameters)
        meaning = " ".join((rule.build.__doc__ or "").split()).removeprefix("1.0 where ").replace("``", "`")
        yield f"| `{name}` | {options} | {meaning} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
