"""Likeness of meaning: the cosine of two texts' embeddings by a frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from loopwise.errors import ModelError
from loopwise.evaluate.parts import Judged
from loopwise.evaluate.references import Figures, reference_texts
from loopwise.models.encoders import load_encoder, positions_of
from loopwise.models.folders import calm_transformers
from loopwise.models.tokenizers import encodable
from loopwise.runtime import Runtime
from loopwise.types import Problem, Prompt, Sample

TEXTS_AT_ONCE = 32
UNLIMITED = 2**30


class Encoder:
    """A frozen encoder with mean pooling (Reimers and Gurevych 2019)."""

    def __init__(self, module: Any, tokenizer: Any, runtime: Runtime) -> None:
        self._module = module.eval().to(runtime.torch_device)
        self._tokenizer = tokenizer
        self._runtime = runtime
        limits = (positions_of(module.config.to_dict()), tokenizer.model_max_length)
        # A tokenizer without a limit says so by an enormous one.
        self._longest = min((int(limit) for limit in limits if limit and limit < UNLIMITED), default=None)

    @classmethod
    def load(cls, path: str, runtime: Runtime) -> Encoder:
        """From a Hugging Face folder, or ``package:NAME``. Raises ModelError naming what is wrong with the folder."""
        calm_transformers()
        module, tokenizer = load_encoder(path)
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise ModelError(f"{path}: its tokenizer has no token to pad texts with. Set its pad_token.")
            tokenizer.pad_token = tokenizer.eos_token
        return cls(module, tokenizer, runtime)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 ``[S, H]``: means of the last states of each text's tokens.

        Equal texts are read once; of a text over the encoder's context, the beginning.
        """
        different = list(dict.fromkeys(texts))
        order = sorted(range(len(different)), key=lambda place: len(different[place]))
        found: dict[str, np.ndarray] = {}
        with torch.inference_mode(), self._runtime.autocast():
            for start in range(0, len(order), TEXTS_AT_ONCE):
                batch = [different[place] for place in order[start : start + TEXTS_AT_ONCE]]
                found |= dict(zip(batch, self._read(batch), strict=True))
        return np.stack([found[text] for text in texts]) if texts else np.zeros((0, 0), dtype=np.float32)

    def _read(self, texts: list[str]) -> np.ndarray:
        # Padded on the right, whatever the tokenizer is set to: encoders count positions from the first token.
        sides = {"padding_side": "right", "truncation_side": "right"}
        encoded = self._tokenizer(
            list(map(encodable, texts)),
            padding=True,
            truncation=self._longest is not None,
            max_length=self._longest,
            return_tensors="pt",
            **sides,
        )
        inputs = encoded.to(self._runtime.torch_device)
        mask = inputs["attention_mask"].unsqueeze(-1).float()
        states = self._module(**inputs).last_hidden_state.float()
        means = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
        return np.asarray(torch.nn.functional.normalize(means, dim=-1).cpu().numpy())


class Likeness:
    """A judge: the cosine between the embeddings of each completion and its prompt, or the nearest text in ``column``;
    0 where it is negative, and for an empty completion. None where there is nothing to compare with."""

    def __init__(self, encoder: Encoder, column: str | None) -> None:
        self._encoder = encoder
        self._column = column

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Judge samples [S]; those without a prompt or a text to be compared with are masked."""
        judged = Judged.nothing(len(samples))
        if self._column and samples and not any(self._column in problem.columns for problem in problems):
            judged.errors = dict.fromkeys(range(len(samples)), f'it needs column "{self._column}", which no row has')
            return judged
        judged.rewards = [None if cosine is None else max(0.0, cosine) for cosine in self._cosines(problems, samples)]
        return judged

    def report(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Figures | None:
        """Mean cosine of the completions that have words, and how many those are."""
        found = self._cosines(problems, samples)
        known = [c for c, sample in zip(found, samples, strict=True) if c is not None and sample.text.strip()]
        return {"cosine": float(np.mean(known)), "completions": len(known)} if known else None

    def close(self) -> None:
        """Nothing to end."""

    def _cosines(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> list[float | None]:
        others = [self._others(problem) for problem in problems]
        texts = [sample.text for sample in samples] + [text for several in others for text in several]
        vectors = self._encoder.embed(texts)
        found: list[float | None] = []
        first = len(samples)
        for place, several in enumerate(others):
            rows = vectors[first : first + len(several)]
            first += len(several)
            nearest = float((rows @ vectors[place]).max()) if several else None
            found.append(nearest if nearest is None or samples[place].text.strip() else 0.0)
        return found

    def _others(self, problem: Problem) -> list[str]:
        texts = [_text(problem.prompt)] if self._column is None else reference_texts(problem.columns.get(self._column))
        return [text for text in texts if text.strip()]


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)
