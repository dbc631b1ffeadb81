"""Where judges start: encoders and causal models loaded from folders, and encoders of BERT's shape made here."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from loopwise.config.blocks import TokenizerConfig
from loopwise.config.judge_blocks import JudgeModelConfig
from loopwise.errors import ConfigError, ModelError
from loopwise.models.folders import calm_transformers, check_complete, check_folder, check_vocabulary
from loopwise.models.judges import Judge, JudgeConfig, bare, judge_config
from loopwise.models.policy import Policy, Weights
from loopwise.models.tokenizers import loading_fault, make_tokenizer, vocabulary_size
from loopwise.runtime import Runtime, seed_key

MASK, OPENING, DIVIDER = "<mask>", "<cls>", "<sep>"
PACKAGE = "package:"


def start_judge(
    model: JudgeModelConfig, head: str, reads: str, labels: Sequence[str], runtime: Runtime, texts: Sequence[str]
) -> Policy:
    """A judge that has learned nothing yet: ``head`` is labels, score or tokens, ``texts`` are for a tokenizer.

    What is drawn is a pure function of the model's shape, the head and ``runtime.seed``. Raises ConfigError and
    ModelError naming the key or folder and the mend.
    """
    calm_transformers()
    body, tokenizer = _created(model, texts) if model.create else load_encoder(str(model.path))
    if head == "tokens" and tokenizer.mask_token_id is None:
        raise ConfigError(
            f'key "masked": the tokenizer of {model.path} has no mask token, so it is no masked language model. '
            "Leave the key out, or name an encoder such as BERT."
        )
    causal = model.create is None and tokenizer.cls_token_id is None
    shape = body if isinstance(body, dict) else body.config.to_dict()
    config = JudgeConfig(
        body=shape,
        head=head,
        pooling=model.pooling or ("last" if causal else "mean"),
        reads=reads,
        labels=list(labels),
        dropout=model.dropout,
        max_position_embeddings=positions_of(shape),
        hidden_size=shape.get("hidden_size", shape.get("n_embd")),
        vocab_size=shape["vocab_size"],
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        key = seed_key("judge", model.model_dump_json(exclude={"path"}), head, len(labels), runtime.seed)
        torch.manual_seed(key % 2**63)
        judge = Judge(config)
    if not isinstance(body, dict):
        judge.body.load_state_dict(body.state_dict())
    policy = Policy(Weights.of(judge.float().to(runtime.torch_device)), tokenizer)
    check_vocabulary(policy, str(model.path or model.create))
    return policy


def with_body(judge: Policy, read: Policy) -> Policy:
    """A judge whose body is the one that ``read``, a judge of the same shape, has."""
    module: Any = judge.trainable_module()
    assert read.weights is not None
    module.body.load_state_dict(read.weights.module.body.state_dict())  # type: ignore[union-attr]  # it is a Judge
    return judge.with_module(module)


def calibrated(judge: Policy, temperature: float, centre: float) -> Policy:
    """The judge with the temperature and centre by which its scores become probabilities."""
    module: Any = judge.trainable_module()
    module.config.temperature, module.config.centre = temperature, centre
    return judge.with_module(module)


def most_tokens(judge: Policy, max_length: int | None = None) -> int | None:
    """The longest text a judge reads, in tokens: what its positions allow, or less where ``max_length`` says so.

    Raises ConfigError where that is more than its positions allow.
    """
    limit = judge_config(judge).max_position_embeddings
    if max_length is not None and limit is not None and max_length > limit:
        raise ConfigError(f'key "update.max_length": {max_length} tokens are over the model\'s context of {limit}.')
    return max_length or limit


def encoder_folder(path: str) -> Path:
    """The folder that ``path`` names. ``package:NAME`` is the one folder of a model inside an installed package.

    Raises ModelError where there is none.
    """
    if not path.startswith(PACKAGE):
        if not Path(path).is_dir():
            raise ModelError(f"{path}: no such folder. Name one with config.json, weights and tokenizer.")
        return Path(path)
    name = path.removeprefix(PACKAGE)
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise ModelError(f"{path}: no such package is installed. Install it, or name a folder.")
    roots = [Path(place) for place in found.submodule_search_locations]
    folders = sorted({file.parent for root in roots for file in root.rglob("model.safetensors")})
    if len(folders) != 1:
        what = "no model.safetensors in it" if not folders else f"{len(folders)} models in it"
        raise ModelError(f"{path}: {what}. Name the model's folder.")
    return folders[0]


def positions_of(shape: dict[str, Any]) -> int | None:
    """Most tokens of a text. RoBERTa and its kin begin to count positions after the padding's."""
    positions = shape.get("max_position_embeddings", shape.get("n_positions"))
    own = {"roberta", "xlm-roberta", "camembert", "mpnet"}
    return positions - shape["pad_token_id"] - 1 if positions and shape["model_type"] in own else positions


def load_encoder(path: str) -> tuple[Any, Any]:
    """The body and tokenizer in a Hugging Face folder, or of ``package:NAME``.

    Pickled weights are never loaded, and no program code in it runs. Raises ModelError naming what is wrong with it, as
    weights that are missing.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    folder = encoder_folder(path)
    check_folder(folder)
    own: Any = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **own)
        tokenizer = AutoTokenizer.from_pretrained(folder, **own)
        if isinstance(config, JudgeConfig) or getattr(config, "is_encoder_decoder", False):
            raise ValueError(f"model_type {config.model_type} is none that reads texts alone")
        body, report = AutoModel.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **own
        )
    except Exception as error:  # transformers raises a dozen kinds here, all of them about this folder
        raise ModelError(
            f"{path}: not loadable as an encoder ({loading_fault(error)}). Check the folder, or save the model again."
        ) from error
    poolers = {name for name in report["missing_keys"] if name.startswith("pooler.")}
    check_complete({**report, "missing_keys": set(report["missing_keys"]) - poolers}, path)
    bare(body)
    return body, tokenizer


def _created(model: JudgeModelConfig, texts: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """BERT's shape as a configuration, and its tokenizer.

    Without layers it is token and position embeddings under a layer norm: what an attention-pooled classifier reads.
    """
    from transformers import BertConfig

    tokenizer = _tokenizer(model.tokenizer, texts)
    config = BertConfig(
        vocab_size=vocabulary_size(tokenizer),
        hidden_size=model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        intermediate_size=4 * model.width,
        max_position_embeddings=model.context,
        type_vocab_size=1,
        hidden_dropout_prob=model.dropout,
        attention_probs_dropout_prob=model.dropout,
        pad_token_id=tokenizer.pad_token_id,
    )
    return config.to_dict(), tokenizer


def _tokenizer(config: TokenizerConfig, texts: Sequence[str]) -> Any:
    """A tokenizer of ours that opens a text with ``<cls>``, divides two and closes with ``<sep>``, and can mask."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(config, texts)
    if config.path is None:
        tokenizer.add_special_tokens({"mask_token": MASK, "cls_token": OPENING, "sep_token": DIVIDER})
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{OPENING} $A {DIVIDER}",
            pair=f"{OPENING} $A {DIVIDER} $B {DIVIDER}",
            special_tokens=[(mark, tokenizer.convert_tokens_to_ids(mark)) for mark in (OPENING, DIVIDER)],
        )
    return tokenizer
