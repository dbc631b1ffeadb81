"""Attention over prefix trees in an unmodified transformers model.

The trees reach its attention as its ``attention_mask``: a ``TreeMask`` is a tensor that answers
``scaled_dot_product_attention`` itself, the way torch's own ``torch.nn.attention.bias`` does. So nothing about the
model is switched on, and nothing has to be switched off again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from loopwise.models.forest import Forest


class TreeMask(torch.Tensor):
    """The attention mask bool ``[1, 1, T, T]`` of a ``Forest``, without its T * T entries.

    ``scaled_dot_product_attention`` with it computes what the mask says without ever making it. Any other operation
    gets a mask of true entries, and ``unfolded`` then says so. ``calls`` counts the attention layers that used it.
    """

    forest: Forest
    calls: int
    unfolded: bool

    @staticmethod
    def of(forest: Forest) -> TreeMask:
        """The mask of a forest. It holds one entry in memory."""
        entry = torch.ones((), dtype=torch.bool, device=forest.device)
        mask = entry.expand(1, 1, forest.length, forest.length).as_subclass(TreeMask)
        mask.forest, mask.calls, mask.unfolded = forest, 0, False
        return mask

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What torch calls in place of ``func`` where an argument is a TreeMask."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _intercepted(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            if func in _HARMLESS:
                return func(*args, **kwargs)
            return func(*map(_unfold, args), **{name: _unfold(value) for name, value in kwargs.items()})


_HARMLESS = frozenset(
    [
        *(getattr(torch.Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad")),
        *(torch.Tensor.size, torch.Tensor.dim, torch.Tensor.is_floating_point),
    ]
)
"""What only asks about the mask's form."""


def _unfold(value: Any) -> Any:
    if not isinstance(value, TreeMask):
        return value
    value.unfolded = True
    return value.forest.dense(torch.arange(value.forest.length, device=value.forest.device))[None, None]


def _intercepted(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: TreeMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """``scaled_dot_product_attention`` of ``[1, heads, T, D]`` over a forest."""
    attn_mask.calls += 1
    if key.shape[1] != query.shape[1]:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    if torch.is_autocast_enabled(query.device.type):
        # What autocast does to attention, which it does not find under this function.
        to = torch.get_autocast_dtype(query.device.type)
        query, key, value = (part.to(to) for part in (query, key, value))
    # Rows [T, heads, D], which stretches of tokens are views of.
    rows = [part[0].transpose(0, 1) for part in (query, key, value)]
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if query.device.type == "cpu" and dropout_p == 0.0 and query.shape[-1] == value.shape[-1]:
        output: torch.Tensor = _MergedAttention.apply(*rows, attn_mask.forest, factor)  # type: ignore[no-untyped-call]
    else:
        output = _masked_attention(rows, attn_mask.forest, factor, dropout_p)
    return output.transpose(0, 1)[None]


def _masked_attention(rows: list[torch.Tensor], forest: Forest, scale: float, dropout: float) -> torch.Tensor:
    """Output ``[T, heads, D]``, tree by tree under a mask: for any device, and for dropout."""
    output = rows[2].new_empty((*rows[0].shape[:2], rows[2].shape[-1]))
    for span in forest.whole:
        assert span.index is not None
        assert span.real is not None
        query, key, value = (span.take(row) for row in rows)
        mask = (forest.dense(span.index) & span.real[:, None])[:, None]
        part = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
        output = output.index_put((span.index[span.real],), part.transpose(1, 2)[span.real])
    return output


class _MergedAttention(torch.autograd.Function):
    """Attention over stem and own branch computed apart and merged by the sums of their softmaxes.

    With out_i, l_i the output and logsumexp over the keys of part i, ``l = logaddexp(l_1, l_2)`` and
    ``out = sum_i exp(l_i - l) out_i`` are those over both (Milakov and Gimelshein 2018). The backward of one part under
    the merged ``out`` and ``l`` is then its share of the exact gradient: the probabilities ``exp(score - l)`` and
    ``delta = sum(out * gradient)`` are all that part i takes from the others (Dao et al. 2022, algorithm 4).
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, forest: Forest, scale: float
    ) -> torch.Tensor:
        rows = (query, key, value)
        output = torch.empty(query.shape, dtype=query.dtype)
        sums = torch.empty(query.shape[:2], dtype=torch.float64 if query.dtype == torch.float64 else torch.float32)
        for piece in forest.own:
            part, logsumexp = piece.forward(rows, scale)
            piece.queries.put(output, part)
            piece.queries.put(sums, logsumexp)
        for piece in forest.across:
            part, logsumexp = piece.forward(rows, scale)
            before = piece.queries.take(sums)
            merged = torch.logaddexp(before, logsumexp)
            kept, new = ((side - merged).exp_().to(part.dtype)[..., None] for side in (before, logsumexp))
            piece.queries.put(output, part.mul_(new).addcmul_(piece.queries.take(output), kept))
            piece.queries.put(sums, merged)
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.forest, ctx.scale = forest, scale
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        *rows, output, sums = ctx.saved_tensors
        found = [torch.empty(row.shape, dtype=row.dtype) for row in rows]
        for pieces, add in ((ctx.forest.own, False), (ctx.forest.across, True)):
            for piece in pieces:
                parts = piece.backward(gradient, rows, output, sums, ctx.scale)
                for span, row, part in zip(piece.spans, found, parts, strict=True):
                    span.put(row, part, add=add)
        return *found, None, None
