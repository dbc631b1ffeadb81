"""The words of docs/recipes.md: titles of the blocks, notes, and meanings of keys that have none of their own."""

from __future__ import annotations

from collections.abc import Mapping

from loopwise.config.blocks import (
    Block,
    BudgetConfig,
    CorpusConfig,
    CurriculumConfig,
    DataConfig,
    EndpointConfig,
    GateConfig,
    LimitConfig,
    LoraConfig,
    ModelConfig,
    MonitorsConfig,
    OptimizerConfig,
    PriceConfig,
    RefineConfig,
    RewardConfig,
    RowsConfig,
    RuntimeConfig,
    SamplingConfig,
    SourceConfig,
    TokenizerConfig,
)
from loopwise.config.judge_blocks import JudgeDataConfig, JudgeModelConfig, JudgingConfig, MaskedConfig
from loopwise.config.methods import (
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
from loopwise.config.recipes import ImproveRecipe, JudgeRecipe, PretrainRecipe, TuneRecipe

TITLES: Mapping[type[Block], str] = {
    ImproveRecipe: "A recipe for `loopwise improve`",
    TuneRecipe: "A recipe for `loopwise tune`",
    PretrainRecipe: "A recipe for `loopwise pretrain`",
    JudgeRecipe: "A recipe for `loopwise judge`",
    ModelConfig: "`model`",
    TokenizerConfig: "`model.tokenizer`",
    LoraConfig: "`model.lora`",
    DataConfig: "`data` of tune and improve",
    RowsConfig: "An entry of `data.train` of tune and improve",
    CorpusConfig: "`data` of pretrain",
    SourceConfig: "An entry of `data.train` of pretrain",
    RewardConfig: "An entry of `rewards`, `report_rewards` or `critics`",
    RefineConfig: "`refine`",
    EndpointConfig: "An entry of `endpoints`",
    PriceConfig: "`price` of an endpoint",
    MonitorsConfig: "`monitors`",
    LimitConfig: "A limit of `monitors`",
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
    JudgeModelConfig: "`model` of judge",
    JudgeDataConfig: "`data` of judge",
    MaskedConfig: "`masked` of judge",
    JudgingConfig: "`update` of judge",
}

NOTES: Mapping[type[Block], str] = {
    ModelConfig: (
        "A plain text is short for `path`: `model: ./my-model`. The keys from `depth` to `tokenizer` shape a model "
        "that is created; one that is loaded has its own."
    ),
    RowsConfig: "A plain text is short for `path`.",
    SourceConfig: "A plain text is short for `path`.",
    RewardConfig: "A plain text is short for `use`: `rewards: [number]`.",
    MonitorsConfig: (
        "Measured with the sampling of the round, and set beside the base's own figures on the same problems. Where "
        "the truth is known and rose, entropy, distinct answers and vote share do not warn: a model that has learned "
        "is sure of itself, too. Known it is by `report_rewards`, or where every reward is a built-in rule that uses "
        "references. `roll_back` is never silent. Such a rise, and a fall of `pass_at_k` or `truth`, is one that a "
        "paired one-sided 95% bound shows."
    ),
    RefineConfig: "Needs `critics`. Read by `ilf`, and by the held-out figures.",
    SFTConfig: "Of `sft`, of `rft`, and of all that learns from pairs, which a batch then has in place of rows.",
    PairsConfig: "Beside the keys of [`update` on rows](#update-on-rows).",
    PolicyGradientConfig: "Beside the keys of [`update` on fresh samples](#update-on-fresh-samples).",
    DataConfig: (
        "Name `train` or `task`. A number under `dev` or `test` takes so many of the train rows out, or generates so "
        "many of the task; without one it is a tenth of the rows, at most 1,000, or 1,000 of the task. 0 leaves the "
        "split out."
    ),
}

# Meanings of keys whose field in loopwise/config has no description of its own.
MEANINGS: Mapping[type[Block], Mapping[str, str]] = {
    ImproveRecipe: {
        "model": "the model to start from",
        "data": "problems to learn on, and those held out",
        "update": "how a round is learned from",
        "rounds": "turns of the loop",
        "sampling": "how completions are drawn",
        "gate": "when a round is rolled back",
        "monitors": "what is watched beside the reward",
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
        "use": "a built-in rule or source (below), `module.function` or `path/to/file.py:function`",
        "weight": "its factor in the sum; a critic has none",
    },
    EndpointConfig: {"price": "what `most_money` counts"},
    PriceConfig: {"read": "tokens of prompts", "written": "tokens of answers"},
    LimitConfig: {"warn": "past this it warns", "roll_back": "past this the round is rolled back"},
    JudgeRecipe: {
        "model": "what reads the texts",
        "data": "rows with judgements",
        "update": "how they are learned",
        "seed": "every split and batch is a pure function of it",
        "runtime": "the machine",
        "budget": "limits that end the run early",
    },
    JudgeModelConfig: {"width": "of a created encoder"},
    MaskedConfig: {"rounds": "turns of so many steps", "optimizer": "optimizer and schedule"},
    JudgingConfig: {"optimizer": "optimizer and schedule"},
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
