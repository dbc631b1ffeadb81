"""The table of test_bad_input.py: what a person can get wrong, and what the message must hold."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROWS = [{"prompt": f"{a}+{b}=", "answer": str(a + b), "completion": str(a + b)} for a in range(10) for b in range(4)]
IMPROVE = """\
model: model
data: {train: rows.jsonl, dev: 8, test: 8, reference_columns: [answer]}
rewards: [number]
rounds: 1
problems: 4
samples: 2
sampling: {max_tokens: 3}
update: {method: rft, steps: 1, batch_size: 2, threshold: -1}
runtime: {threads: 1}
"""
TUNE = """\
model: model
data: {train: rows.jsonl, dev: 8, test: 8}
update: {steps: 1, batch_size: 2}
sampling: {max_tokens: 3}
runtime: {threads: 1}
"""


def lines(*rows: object) -> str:
    """Rows as JSONL."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def without(*columns: str) -> str:
    """The good rows without some columns, as JSONL."""
    return lines(*({name: value for name, value in row.items() if name not in columns} for row in ROWS))


def reward(body: str) -> dict[str, str]:
    """A reward file whose function ``f`` has this body."""
    return {"mine.py": f"import os, time\ndef f(completions, **columns):\n    {body}\n"}


def save_model(folder: Path, *, tokens: int | None = None, context: int = 32) -> Path:
    """A GPT-2 of one layer and width 16 with a character tokenizer; ``tokens`` cuts its embeddings short."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from loopwise.models.presets import character_tokenizer

    tokenizer = character_tokenizer("0123456789+= ")
    config = GPT2Config(
        vocab_size=tokens or len(tokenizer),
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=context,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Case:
    """What is wrong, what the message must hold, and how to get there: files to write, arguments to give."""

    what: str
    says: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    command: str = "improve"
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    spoil: Callable[[Path], object] | None = None


def rows_case(what: str, content: str | bytes, *says: str, name: str = "bad.jsonl", more: tuple[str, ...] = ()) -> Case:
    return Case(what, says, (f"data.train={name}", *more), files={name: content})


def reward_case(what: str, body: str, *says: str) -> Case:
    return Case(what, ('reward "f"', *says), ("rewards=[{use: 'mine.py:f', time_limit: 1}]",), files=reward(body))


def recipe_case(what: str, content: str | bytes, *says: str, command: str = "improve") -> Case:
    return Case(what, (f"{command}.yaml", *says), command=command, files={f"{command}.yaml": content})


def key_case(change: str, *says: str) -> Case:
    return Case(change, says, (change,))


def broken_model(what: str, spoil: Callable[[Path], object], *says: str) -> Case:
    """A copy of the model with something spoiled."""

    def copy_and_spoil(workshop: Path) -> None:
        shutil.copytree(workshop / "model", workshop / "broken")
        spoil(workshop / "broken")

    return Case(what, ("broken", *says), ("model=broken",), spoil=copy_and_spoil)


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(change((folder / name).read_text()))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


RECIPES = [
    Case("recipe missing", ("nowhere.yaml: no such recipe", "recipes list"), command="improve nowhere.yaml"),
    Case("recipe a folder", ("a folder, not a recipe", "Name the YAML file"), command="improve ."),
    recipe_case("recipe empty", "", "found nothing", "model, data, rewards"),
    recipe_case("recipe a list", "- model\n", "found a list"),
    recipe_case("recipe broken", "model: [x\ndata: y\n", "line 2: not YAML", "Mend it"),
    recipe_case("recipe binary", b"\xff\xfe\x00", "not UTF-8 text"),
    recipe_case("recipe with a NUL", "model: \x00", "not YAML"),
    recipe_case("recipe with tabs", "model:\n\tpath: x\n", "line 2: not YAML"),
    recipe_case("recipe with an impossible date", IMPROVE + "seed: 2026-99-99\n", "not YAML (month must be in 1..12)"),
    recipe_case("recipe with a key twice", IMPROVE + "rounds: 2\n", "line 10", 'key "rounds" twice'),
    recipe_case("recipe with a list as key", IMPROVE + "[1, 2]: 2\n", "line 10", "no plain word"),
    recipe_case("recipe with code in a tag", "model: !!python/object:os.system x\n", "line 1: not YAML"),
    recipe_case("recipe nested too deeply", "model: " + "[" * 1000, "nested too deeply"),
    recipe_case("recipe of the other command", TUNE, "a recipe of `loopwise tune`", "Run that"),
    recipe_case("recipe of the loop", IMPROVE, "a recipe of `loopwise improve`", "Run that", command="tune"),
    recipe_case("recipe without a model", IMPROVE.partition("\n")[2], 'key "model" is missing', "Add it"),
    key_case("round=3", "improve.yaml", 'unknown key "round". Did you mean "rounds"?'),
    key_case("update.optimizer.momentom=1", '"update.optimizer.momentom". Did you mean "momentum"?'),
    key_case("rewards=[{use: number, wieght: 2}]", '"rewards.0.wieght". Did you mean "weight"?'),
    key_case("rounds", '"rounds": expected key=value', "for example"),
    key_case("=3", '"=3": expected key=value'),
    key_case("update..steps=1", "expected key=value"),
    key_case("rounds=[1", '"rounds=[1"', "not YAML"),
    key_case("rounds.more=3", '"rounds" is not a block of keys', "rounds=…"),
    key_case("model.path=x", '"model" is not a block of keys', "model=…"),
    key_case("rewards=number", "key \"rewards\": expected a list in [ ], found 'number'"),
    key_case(
        "rewards=[]",
        'key "rewards": expected at least 1 entry (only a built-in task has rewards of its own), found nothing',
    ),
    key_case("rewards=[3]", 'key "rewards.0": expected keys with values, found 3'),
    key_case("data.reference_columns=answer", "data.reference_columns", "a list in [ ], found 'answer'"),
    key_case("sampling.stop=x", "key \"sampling.stop\": expected a list in [ ], found 'x'"),
    key_case("sampling.stop=['']", 'key "sampling.stop.0": expected text that is not empty'),
    key_case("data=rows.jsonl", "key \"data\": expected keys with values, found 'rows.jsonl'"),
    key_case("data={}", 'name either "train" (a row file) or "task"'),
    key_case("data.task=addition", 'name either "train" (a row file) or "task"'),
    key_case("model={}", 'name one of "path" (a model folder), "create"'),
    key_case("rounds=0", 'key "rounds": expected at least 1, found 0'),
    key_case("samples=-2", 'key "samples": expected at least 1, found -2'),
    key_case("rounds=1.5", 'key "rounds": expected a whole number, found 1.5'),
    key_case("rounds=", 'key "rounds": expected a whole number, found nothing'),
    key_case("rounds=yes", 'key "rounds": expected a number', "found true"),
    key_case("update.optimizer.lr=fast", "expected a number, found 'fast'"),
    key_case("update.optimizer.lr=.inf", "expected a finite number, found inf"),
    key_case("update.optimizer.betas=[2, 0.9]", 'key "update.optimizer.betas.0": expected less than 1.0, found 2'),
    key_case("sampling.temperature=-1", 'key "sampling.temperature": expected at least 0.0, found -1'),
    key_case("sampling.temperature=.nan", "expected a finite number, found nan"),
    key_case("sampling.top_p=2", "expected at most 1.0, found 2"),
    key_case("update.method=grpoo", 'key "update.method": unknown method "grpoo"', 'Did you mean "grpo"?'),
    key_case("update.method=", 'key "update.method": expected one of dr_grpo, grpo', "found nothing"),
    key_case("update={steps: 3}", '"update.steps" of method dr_grpo (the default)', "it belongs to rft, dpo", "Name"),
    key_case("update.method=grpo", 'unknown key "update.steps" of method grpo', "problems_per_step"),
    key_case("update={kl: {wait: 1}}", 'unknown key "update.kl.wait"', 'Did you mean "weight"?'),
    key_case("update={clip: {high: 0.3}}", '"clip" does nothing with one optimizer step a rollout'),
    key_case("update={method: distill}", "update.teacher"),
    key_case("controls=[labeled]", "'labelled', 'unfiltered' or 'gold', found 'labeled'"),
    key_case("controls=[labelled]", "labelled needs labelled rows", "data.labelled"),
    key_case("update.keep=none", "none trains on labelled rows alone"),
    key_case("data.dev=-3", 'key "data.dev": expected a file of rows, or how many rows', "found -3"),
    key_case("data.labelled=[a]", "data.labelled", "found a list"),
    key_case("data.labelled=5", "name the file of labelled rows, not a number"),
    key_case("runtime.device=gpu", 'key "runtime.device"', "gpu", "Use cpu"),
    key_case("runtime.dtype=fp16", "'float32' or 'bfloat16', found 'fp16'"),
    key_case("model={create: dmeo}", "unknown preset 'dmeo'. Did you mean \"demo\"?"),
    key_case("data={task: adition}", 'unknown task "adition". Did you mean "addition"?'),
    key_case("data={task: addition, dev: rows.jsonl}", "data.dev", "give a number of problems, not a file"),
    key_case("data={task: addition, skills: [rows.jsonl]}", "data.skills", "a built-in task takes none"),
    Case("seed below 0", ('key "seed": expected at least 0',), ("seed=-4",), command="tune"),
    Case("tune without rewards", ("gate.metric", "likelihood"), ("gate.metric=reward",), command="tune"),
    Case("tune without labels", ("data.labelled", "250"), ("data={task: addition}",), command="tune"),
]
DATA = [
    key_case("data.train=nowhere.jsonl", "nowhere.jsonl: no such file"),
    key_case("data.train=.", "a folder, not a file of rows"),
    rows_case("rows empty", "", "bad.jsonl: no rows in it", "Write at least one"),
    rows_case("rows blank", "\n \n", "no rows in it"),
    rows_case("rows with a broken line", lines(*ROWS) + '{"prompt": \n', "bad.jsonl line 41: not JSON", "Mend"),
    rows_case("rows that are numbers", "3\n", "bad.jsonl line 1: expected an object", "found number 3"),
    rows_case("rows binary", bytes(range(256)), "bad.jsonl line 2", "not UTF-8"),
    rows_case("rows no Parquet", b"abc", "bad.parquet: not a readable Parquet file", name="bad.parquet"),
    rows_case("rows of unknown kind", "x", 'unknown extension ".txt"', ".jsonl", name="bad.txt"),
    rows_case("CSV with a lost comma", "prompt,answer\n1\n", "bad.csv line 2: expected 2 fields", name="bad.csv"),
    rows_case("prompt a number", lines({"prompt": 3, "answer": "1"}), 'line 1, column "prompt"', "found number 3"),
    rows_case("prompt empty", lines({"prompt": " ", "answer": "1"}), 'column "prompt"', "found empty text"),
    rows_case("role unknown", lines({"prompt": [{"role": "human", "content": "1"}]}), 'unknown role "human"'),
    rows_case("reference missing", without("answer"), 'line 1, column "answer": missing', "Add it"),
    rows_case("prompts all the same", lines(*ROWS[:1] * 40), "without parting equal prompts", "remove rows"),
    rows_case("too few rows", lines(*ROWS[:5]), "dev 8 + test 8", "of 5", "Lower data.dev"),
    key_case("data.dev=100", "rows.jsonl: dev 100 + test 8 held-out rows wanted of 40", "Lower data.dev"),
    key_case("data.dev=32", "leaves none to train on"),
    key_case("data.prompt_column=question", 'column "question": missing', "data.prompt_column"),
    key_case("data.reference_columns=[anwser]", 'column "anwser": missing. Did you mean "answer"?'),
    key_case("data.dev=rows.jsonl", "dev: 32 of 40 different problems are also in train", "Remove them"),
    key_case("data.labelled=rows.jsonl", "dev: 8 of 8 different problems are also in labelled"),
    key_case("data.labelled=nowhere.jsonl", "nowhere.jsonl: no such file"),
    key_case("data.skills=[rows.jsonl, ./rows.jsonl]", "data.skills", "two files", "Rename one"),
    Case(
        "labelled rows without completions",
        ('labelled.jsonl line 1, column "completion": missing', "data.completion_column"),
        ("data.labelled=labelled.jsonl",),
        files={"labelled.jsonl": lines({"prompt": "9+9=", "answer": "18"})},
    ),
    Case("tune without completions", ('column "gold": missing',), ("data.completion_column=gold",), command="tune"),
    Case("tune rows too long", ("6 tokens, over the limit of 3", "max_length"), ("update.max_length=3",), "tune"),
    rows_case(
        "chat without a template",
        lines(*({**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS)),
        "no chat template",
        "Use text prompts",
    ),
    key_case("sampling.max_tokens=1000", "dev: 8 of 8 prompts do not fit", "with 1000", "Lower sampling.max_tokens"),
]
REWARDS = [
    reward_case("reward raises", "raise KeyError('x')", "raised KeyError: 'x'", "mine.py line 3", "Mend it"),
    reward_case("reward hangs", "time.sleep(60)", "did not return within 1 s", "raise time_limit"),
    reward_case("reward of wrong length", "return [1.0]", "returned 1 rewards for 3 completions"),
    reward_case("reward NaN", "return [float('nan')] * len(completions)", "returned nan as a reward"),
    reward_case("reward a string", "return ['1'] * len(completions)", "returned '1' (str) as a reward"),
    reward_case("reward no list", "return 1.0", "returned 1.0, not a list", "one number"),
    reward_case("reward ends its process", "os._exit(3)", "its process ended (exit status 3)"),
    reward_case("reward with a syntax error", "return [", "cannot be loaded", "SyntaxError", "mine.py"),
    Case(
        "reward needs a column",
        ('reward "f"', 'needs column "gold"', "answer, completion"),
        ("rewards=['mine.py:f']",),
        files={"mine.py": "def f(completions, gold): return [1.0] * len(completions)\n"},
    ),
    Case(
        "function missing",
        ('has no function "g"', "Its functions: f"),
        ("rewards=['mine.py:g']",),
        files=reward("return []"),
    ),
    key_case("rewards=['nowhere.py:f']", "there is no file", "nowhere.py", "Mend the path"),
    key_case("rewards=[no_such_module.f]", 'there is no module "no_such_module"', "path/to/file.py:function"),
    key_case("rewards=[json.nothing]", 'json has no function "nothing"'),
    key_case("rewards=[nubmer]", 'reward "nubmer": no such rule. Did you mean "number"?'),
    key_case("rewards=['']", "no such rule"),
    key_case("rewards=[{use: number, options: {colunm: x}}]", 'unknown option "colunm". Did you mean "column"?'),
    key_case("rewards=[{use: number, options: {column: 3}}]", 'option "column" must be text, found 3'),
    key_case("rewards=[{use: number, options: {column: gold}}]", 'needs column "gold"', "answer, completion"),
    key_case("rewards=[regex]", 'option "pattern" is missing', "Add it"),
    key_case("rewards=[{use: regex, options: {pattern: '('}}]", "no regular expression", "Mend it"),
    key_case("rewards=[{use: number, uses_reference: false}]", "uses_reference is true for this rule"),
    key_case("label_free=true", 'reward "number" uses references', "label_free: false"),
    key_case("report_rewards=[nope]", 'reward "nope": no such rule'),
]
MODELS = [
    key_case("model=./nowhere", "nowhere: no such model folder", "config.json, weights and tokenizer"),
    key_case("model=nowhere", "nowhere: no such folder here, so taken for a hub name", "Check the name"),
    key_case("model=rows.jsonl", "rows.jsonl: no such model folder"),
    broken_model("no config", lambda at: (at / "config.json").unlink(), "no config.json"),
    broken_model("no weights", lambda at: (at / "model.safetensors").unlink(), "no weights", "save_pretrained"),
    broken_model("pickled weights", pickled, "pytorch_model.bin is a pickle", "safetensors"),
    broken_model(
        "weights cut", lambda at: os.truncate(at / "model.safetensors", 500), "not loadable", "save the model"
    ),
    broken_model("config broken", edit("config.json", lambda text: "{"), "not loadable", "not a valid JSON file"),
    broken_model(
        "a layer without weights",
        edit("config.json", lambda text: text.replace('"n_layer": 1', '"n_layer": 2')),
        "no weights for 12 tensors, for example transformer.h.1",
    ),
    broken_model(
        "weights of another width",
        edit("config.json", lambda text: text.replace('"n_embd": 16', '"n_embd": 32')),
        "another shape than config.json says",
    ),
    broken_model("no tokenizer", lambda at: [file.unlink() for file in at.glob("token*")], "no tokenizer"),
    broken_model("prompt state", lambda at: (at / "prompt_state.json").write_text("{}"), "prompt_state.json", "Mend"),
    Case(
        "vocabulary too small",
        ("small: the tokenizer has token id 15, but the model has embeddings for 5 tokens",),
        ("model=small",),
        spoil=lambda at: save_model(at / "small", tokens=5),
    ),
    Case(
        "context too short",
        ("dev: 8 of 8 prompts do not fit", "context of 4", "take a model with a longer context"),
        ("model=short",),
        spoil=lambda at: save_model(at / "short", context=4),
    ),
]
