"""Policies from Hugging Face folders and back. Pickled weights are never loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from loopwise.errors import ModelError, VocabularyError
from loopwise.models.lora import ADAPTER_CONFIG, check_adapters, save_adapters
from loopwise.models.policy import Policy, Weights, has_adapters
from loopwise.models.tokenizers import loading_fault
from loopwise.runtime import Runtime
from loopwise.types import PromptState

SHORT_CONTEXT = 64
HUB_SECONDS = 3.0
PROMPT_STATE_FILE = "prompt_state.json"
JUDGE = "loopwise_judge"
"""The ``model_type`` of judges."""


def load_policy(path: str | Path, runtime: Runtime, *, judges: bool = False) -> Policy:
    """Load a causal language model folder (or hub name) with float32 master weights; with ``judges`` also a judge's.

    A folder that holds a prompt state alone gives a policy without weights, as ``save_policy`` left it.
    Raises ModelError naming what the folder lacks, VocabularyError when tokenizer and model do not fit.
    """
    folder = Path(path)
    if (folder / PROMPT_STATE_FILE).is_file() and not (folder / "config.json").exists():
        return Policy(prompt_state=_read_prompt_state(folder))
    if folder.is_dir():
        check_folder(folder)
    elif folder.is_absolute() or str(path).startswith((".", "~")) or folder.exists():
        raise ModelError(f"{path}: no such model folder. Name a folder with config.json, weights and tokenizer.")
    remote = "" if folder.is_dir() else "no such folder here, so taken for a hub name; "
    from transformers import AutoTokenizer

    calm_transformers()
    try:
        here = folder.is_dir() or not _on_hub(str(path))
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=here, trust_remote_code=False)
        module, reports = _load_module(str(path), runtime, local_files_only=here)
    except Exception as error:  # transformers raises a dozen kinds here, all of them about this folder
        raise ModelError(
            f"{path}: {remote}not loadable as a causal language model ({loading_fault(error)}). "
            "Check the name, or save the model again."
        ) from error
    if not judges and module.config.model_type == JUDGE:
        raise ModelError(f"{path}: a judge, which writes no text. Use it as the reward trained_judge, or name a model.")
    for report in reports:
        check_complete(report, str(path))
    policy = Policy(Weights.of(module.to(runtime.torch_device)), tokenizer, _read_prompt_state(folder))
    check_vocabulary(policy, str(path))
    return policy


def save_policy(policy: Policy, folder: Path) -> None:
    """Write a policy as a Hugging Face folder; a prompt state goes to ``prompt_state.json``.

    Adapters are written as such, beside the model below them. Plain ``AutoModelForCausalLM`` opens both as one.
    Plain ``from_pretrained`` loading ignores that file: loaded that way, the state is the caller's to apply.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if policy.weights is not None:
        calm_transformers()
        if has_adapters(policy.weights.module):
            save_adapters(policy.weights.module, folder)
        else:
            policy.weights.module.save_pretrained(folder)  # type: ignore[operator]  # a transformers module
    if policy.tokenizer is not None:
        policy.tokenizer.save_pretrained(folder)
    if policy.prompt_state != PromptState() or policy.weights is None:
        note = "Part of the policy, ignored by plain from_pretrained loading: apply it to prompts yourself."
        content = {"note": note, **asdict(policy.prompt_state)}
        (folder / PROMPT_STATE_FILE).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def attention_for(config: Any, runtime: Runtime) -> str | None:
    """Plain attention where a processor meets a context too short for the fused kernel to pay (a tenth of a training
    step at 13 tokens); transformers' own choice elsewhere. A function of model and machine alone, so that a resumed
    run computes as it did before.
    """
    length = getattr(config, "max_position_embeddings", None)
    return "eager" if runtime.device == "cpu" and isinstance(length, int) and length <= SHORT_CONTEXT else None


def calm_transformers() -> None:
    """Keep transformers' own progress bars and advice off the terminal; its errors still come."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _on_hub(name: str) -> bool:
    """Whether the hub answers for a name within seconds. If not, only a copy that was downloaded before may do."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except Exception:  # no network, offline mode, no such name: a dozen kinds, after which a local copy is looked for
        return False
    return True


def _load_module(path: str, runtime: Runtime, *, local_files_only: bool) -> tuple[Any, list[Mapping[str, Any]]]:
    """The module with float32 weights, and transformers' reports on what it found: of the model, of its adapters."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    import loopwise.models.judges
    import loopwise.models.lstm  # noqa: F401  # makes our own architectures known to the Auto classes

    config = AutoConfig.from_pretrained(path, local_files_only=local_files_only, trust_remote_code=False)
    kind = AutoModel if config.model_type == JUDGE else AutoModelForCausalLM
    adapted = (Path(path) / ADAPTER_CONFIG).is_file()
    module, report = kind.from_pretrained(
        path,
        config=config,
        local_files_only=local_files_only,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,  # left open, transformers would ask on the terminal
        attn_implementation=attention_for(config, runtime),
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        # Transformers would load adapters by itself, but report on nothing else then: keep them from being found.
        adapter_kwargs={"subfolder": "no adapters"} if adapted else None,
    )
    if not adapted:
        return module, [report]
    renamings = getattr(module, "_weight_conversions", None)
    info = module.load_adapter(path)
    # It leaves its own renamings behind, by which the model below would be saved under the adapters' names.
    module._weight_conversions = renamings
    return module.float(), [report, info.to_dict()]


def _read_prompt_state(folder: Path) -> PromptState:
    file = folder / PROMPT_STATE_FILE
    if not file.is_file():
        return PromptState()
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        examples = tuple((prompt, completion) for prompt, completion in content["examples"])
        lessons = tuple((task, lesson) for task, lesson in content.get("lessons", ()))
        return PromptState(content["system"], examples, tuple(content["memory"]), lessons, content.get("suffix", ""))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f'{file}: expected the keys "system", "examples" and "memory" as loopwise writes them ({error}). '
            "Mend the file or remove it."
        ) from None


def check_folder(folder: Path) -> None:
    """Raise ModelError naming what a model folder lacks, or what in it is a pickle."""
    if (folder / ADAPTER_CONFIG).is_file():
        check_adapters(folder)
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder}: an adapter without the model below it. Copy that model's files into the folder, or merge "
                "the two and name the result."
            )
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json, so this is no Hugging Face model folder.")
    if not list(folder.glob("*.safetensors")):
        pickled = list(folder.glob("*.bin")) + list(folder.glob("*.pt"))
        mend = (
            f"{pickled[0].name} is a pickle, which can run code and is never loaded: save it again as safetensors."
            if pickled
            else "Save the model with save_pretrained, which writes model.safetensors."
        )
        raise ModelError(f"{folder}: no weights (*.safetensors). {mend}")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        raise ModelError(f"{folder}: no tokenizer (tokenizer.json). Save it there with tokenizer.save_pretrained.")


def check_complete(report: Mapping[str, Any], place: str) -> None:
    """Refuse weights that transformers would fill up with random numbers."""
    shapes = [name for name, *_ in report["mismatched_keys"]]
    names = sorted([*report["missing_keys"], *shapes])
    if names:
        fault = "another shape than config.json says" if shapes else "no weights"
        raise ModelError(
            f"{place}: {fault} for {len(names)} tensors, for example {names[0]}. "
            "Use the config.json that this model was saved with, or a model with a language-model head."
        )


def check_vocabulary(policy: Policy, place: str) -> None:
    """Raise VocabularyError where the tokenizer has ids beyond the model's embeddings."""
    assert policy.weights is not None
    rows = policy.weights.module.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    highest = max(policy.tokenizer.get_vocab().values(), default=-1)
    if highest >= rows:
        raise VocabularyError(
            f"{place}: the tokenizer has token id {highest}, but the model has embeddings for {rows} tokens "
            f"(ids 0 to {rows - 1}). Use the tokenizer this model was trained with, or resize the embeddings."
        )
