"""Whether an architecture can be sampled at all, found out in a few tiny forward passes before a run begins."""

from __future__ import annotations

from typing import Any

import torch

from loopwise.errors import ModelError
from loopwise.generate.local import advance, prefill
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime

TOLERANCE = 1e-2
LENGTH = 5  # tokens the check reads at most in a row


@torch.inference_mode()
def check_sampling(policy: Policy, runtime: Runtime) -> None:
    """Raise ModelError where decoding with a cache does not give the logits of plain forward passes.

    State-space and recurrent models keep another memory than keys and values: some raise, some go on with garbage.
    """
    if policy.weights is None or (policy.weights.context_length or LENGTH) < LENGTH:
        return
    module: Any = policy.weights.module
    try:
        cached, plain = _logits(module, runtime.torch_device)
        # Models fresh from their initialisation have logits next to 0, among which any error would look small.
        allowed = TOLERANCE * min(1.0, float(plain.abs().max()))
        gap = float((cached - plain).abs().max())
        fault = "" if gap <= allowed else f"its logits with a cache are {gap:.2g} away from those without"
    except Exception as error:  # whatever an architecture of anybody's raises when its cache is no key-value cache
        fault = str(error).strip().partition("\n")[0] or type(error).__name__
    if fault:
        raise ModelError(
            f"model_type {module.config.model_type}: loopwise cannot sample this architecture yet ({fault}). Take a "
            "decoder whose every layer is attention, as in GPT-2, Llama, Qwen3 or Mistral; "
            "`loopwise tune` without rewards trains this one too."
        )


def _logits(module: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[4, V]`` after two prompts of unequal length, and after one token more: with a cache, and without."""
    size = module.get_input_embeddings().weight.shape[0]
    ids = [size * place // 8 for place in range(1, 8)]
    prompts, tokens = [ids[:2], ids[2:6]], torch.tensor([ids[6], ids[0]], device=device)
    cache, first, mask, lengths = prefill(module, prompts, device)
    # Rows change places, as they do when groups are spread and finished rows leave.
    turned = torch.tensor([1, 0], device=device)
    cache.batch_select_indices(turned)
    assert mask is not None
    mask = torch.cat([mask[turned], mask.new_ones(2, 1)], dim=1)
    second = advance(module, cache, tokens[turned], mask, lengths[turned])[turned]
    whole = [*prompts, *([*prompt, int(token)] for prompt, token in zip(prompts, tokens, strict=True))]
    plain = [module(input_ids=torch.tensor([row], device=device), use_cache=False).logits[0, -1] for row in whole]
    return torch.cat([first, second]).float(), torch.stack(plain).float()
