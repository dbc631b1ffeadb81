"""Writes docs/recipes.md, every key of a recipe with default and meaning, from the models of loopwise.config.

Run from the repository: ``python scripts/recipe_docs.py``. ``tests/docs/`` fails where the page is out of date.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
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
    RewardConfig,
    RowsConfig,
    RuntimeConfig,
    SamplingConfig,
    SourceConfig,
    TokenizerConfig,
)
from loopwise.config import ImproveRecipe, PretrainRecipe, TuneRecipe
from loopwise.evaluate.rules import RULES
from loopwise.methods import (
    AdvantageConfig,
    ClipConfig,
    KLConfig,
    OnlineConfig,
    PairingConfig,
    PairsConfig,
    PolicyGradientConfig,
    PPOConfig,
    PretrainConfig,
    RRHFConfig,
    SFTConfig,
    ValueConfig,
)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"

HEAD = """\
# Every key of a recipe

Written by `scripts/recipe_docs.py` from `blocks.py`, `methods.py` and `config.py` of the package. Change those.

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
    SFTConfig: "`update` on rows",
    PairsConfig: "`update` on pairs",
    PairingConfig: "`update.pairs`",
    OnlineConfig: "`update` on fresh samples",
    PolicyGradientConfig: "`update` by policy gradient",
    AdvantageConfig: "`update.advantage`",
    ClipConfig: "`update.clip`",
    KLConfig: "`update.kl`",
    ValueConfig: "`update.value` of ppo",
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
    SFTConfig: "Of `sft`, of `rft`, and of all that learns from pairs, which a batch then has in place of rows.",
    PairsConfig: "Beside the keys of [`update` on rows](#update-on-rows).",
    PolicyGradientConfig: "Beside the keys of [`update` on fresh samples](#update-on-fresh-samples).",
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
    SFTConfig: {"optimizer": "optimizer and schedule"},
    PairsConfig: {"pairs": "how `improve` makes pairs of samples; labelled pairs of `tune` are what they are"},
    RRHFConfig: {"ranking_weight": "of the ranking loss"},
    OnlineConfig: {"optimizer": "optimizer and schedule"},
    PolicyGradientConfig: {
        "advantage": "what a reward is compared with",
        "clip": "how far the ratio may go from 1; nothing is clipped at one optimizer step a rollout",
        "kl": "a pull towards a reference policy",
    },
    ClipConfig: {"low": "clipped below 1 - low", "high": "clipped above 1 + high"},
    ValueConfig: {
        "gamma": "discount of the rewards to come",
        "lam": "GAE's lambda: 1 trusts the rewards, 0 the values",
    },
    PPOConfig: {"value": "the value head"},
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

METHODS_TITLE = "`update`: the methods"
METHODS_HEAD = f"""\
## {METHODS_TITLE}

`method` chooses the way of learning; [methods.md](methods.md) says which one when. `pretrain` has one and no such key.

Below stand the keys that several methods share, then of each its own and the defaults that differ.

| method | command | keys |
| --- | --- | --- |
"""

COLUMNS = "| key | type | default | meaning |\n| --- | --- | --- | --- |"

RULES_HEAD = """\
## Built-in rewards

The rules that `rewards` may name, and their `options`. None: not judged, masked, never counted as 0.

| rule | options | passes where |
| --- | --- | --- |
"""


def page() -> str:
    """The text of docs/recipes.md. Raises ValueError where a key has no meaning, or has two."""
    methods = _methods()
    sections: list[str] = []
    for block in TITLES:
        if block is SFTConfig:
            sections.append(METHODS_HEAD + "\n".join(_overview(*method) for method in methods.items()) + "\n")
        sections.append(_section(block))
        sections += [_method(method) for method in methods if _family(method) is block]
    return "\n".join([HEAD, *sections, RULES_HEAD + "\n".join(_rules()) + "\n"])


def _methods() -> dict[type[Block], list[str]]:
    """The block of each method, with the commands that take it."""
    found: dict[type[Block], list[str]] = {}
    for command, recipe in (("improve", ImproveRecipe), ("tune", TuneRecipe)):
        field = recipe.model_fields["update"]
        for choice in typing.get_args(field.annotation):
            block = typing.get_args(choice)[0]
            is_default = type(field.default) is block
            found.setdefault(block, []).append(f"{command} (its default)" if is_default else command)
    return found


def _family(block: type[Block]) -> type[Block]:
    """The block whose keys a method shares with others."""
    return next(base for base in block.__mro__ if base in TITLES)


def _overview(block: type[Block], commands: list[str]) -> str:
    families = [base for base in reversed(block.__mro__) if base in TITLES]
    keys = [f"[{TITLES[base].removeprefix('`update` ')}](#{_anchor(TITLES[base])})" for base in families]
    keys.append(f"[its own](#{_anchor(_heading(block))})")
    return f"| `{_name(block)}` | {', '.join(commands)} | {', '.join(keys)} |"


def _section(block: type[Block]) -> str:
    parent = next((base for base in block.__mro__[1:] if base in TITLES), None)
    note = f"{NOTES[block]}\n\n" if block in NOTES else ""
    return f"## {TITLES[block]}\n\n{_intro(block)}\n\n{note}{_table(_rows(block, parent))}"


def _method(block: type[Block]) -> str:
    """What a method has beside the keys of the block it stands on; of those keys, defaults that are others here."""
    base = block.__mro__[1] if block.__mro__[1] is not Block else block
    rows = list(_rows(block, base))
    name = _heading(base) if base not in TITLES else TITLES[base]
    known = f"[{name}](#{_anchor(name)})"
    table = f"Beside {known}:\n\n{_table(rows)}" if rows else f"Its keys are those of {known}.\n"
    return f"### {_heading(block)}\n\n{_intro(block)}\n\n{table}"


def _table(rows: Iterable[str]) -> str:
    return "\n".join([COLUMNS, *rows, ""])


def _rows(block: type[Block], parent: type[Block] | None) -> Iterator[str]:
    known = parent.model_fields if parent else {}
    for name, field in block.model_fields.items():
        if name != "method" and (name not in known or known[name].default != field.default):
            yield _row(block, name, field)


def _intro(block: type[Block]) -> str:
    paragraph = inspect.cleandoc(block.__doc__ or "").partition("\n\n")[0]
    return " ".join(paragraph.split()).replace("``", "`")


def _name(block: type[Block]) -> str:
    return str(block.model_fields["method"].default)


def _heading(block: type[Block]) -> str:
    return f"`update.method: {_name(block)}`"


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
        changed = ", ".join(f"{name}: {_plain(getattr(value, name))}" for name in sorted(value.model_fields_set))
        return f"its own, with `{changed}`" if changed else "its own"
    if value is None or value == () or value == {}:
        return "none"
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value) if isinstance(value, tuple) else value)


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
        if all(typing.get_origin(part) is typing.Annotated for part in arguments):  # the methods, with their tags
            return f"[block](#{_anchor(METHODS_TITLE)})"
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
