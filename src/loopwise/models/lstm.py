"""An LSTM language model that transformers' Auto classes know: importing this module registers it.

Embeddings, blocks of LSTM (Hochreiter and Schmidhuber 1997) and an output layer that shares the embeddings' weights
(Press and Wolf 2017). As in a transformer, each block adds to what it is given, after a layer norm: four plain layers
on top of one another are still at the frequencies of the characters when four such blocks have learned words.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

State = tuple[torch.Tensor, torch.Tensor]


class LstmConfig(PreTrainedConfig):  # type: ignore[misc]  # mypy skips transformers
    """Shape of an LSTM language model.

    ``context`` is the window it is trained on and no limit: there is no ``max_position_embeddings``, for the state goes
    on for ever.
    ``initializer_range`` is the standard deviation of the embeddings (and so of the output layer). The LSTM's own
    matrices are drawn as transformers draws them, Xavier-uniform (Glorot and Bengio 2010): as narrow as a transformer's
    they learn more slowly.
    """

    model_type = "loopwise_lstm"
    keys_to_ignore_at_inference = ("past_key_values",)

    vocab_size: int = 256
    hidden_size: int = 128
    num_hidden_layers: int = 2
    context: int = 256
    dropout: float = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True


class LstmCache:
    """What an LSTM remembers of the tokens it has read: ``state``, two ``[layers, S, H]``, or None before any."""

    is_compileable = False

    def __init__(self) -> None:
        self.state: State | None = None
        self.length = 0

    def update(self, state: State, tokens: int) -> None:
        """Take over the state after ``tokens`` more columns were read."""
        self.state = state
        self.length += tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read so far, padding included."""
        return self.length

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows ``indices`` ``[S]``, in their order; a row may come several times."""
        if self.state is not None:
            hidden, cell = self.state
            self.state = hidden[:, indices], cell[:, indices]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Follow beam search: the same as ``batch_select_indices``."""
        self.batch_select_indices(beam_idx)


@dataclass(frozen=True)
class _Runs:
    """Tokens that belong together, without padding: K runs, the longest first, in a batch of B rows and T columns.

    Run k's tokens lie at ``places[firsts[k]:][:lengths[k]]`` of the flattened batch. ``owners`` is its row, ``fresh``
    whether it starts from an empty state, ``last`` whether its end is its row's end; all ``[K]``.
    """

    places: torch.Tensor
    firsts: torch.Tensor
    lengths: torch.Tensor
    owners: torch.Tensor
    fresh: torch.Tensor
    last: torch.Tensor

    @staticmethod
    def find(kept: torch.Tensor, restarts: torch.Tensor) -> _Runs:
        """Cut rows where ``restarts`` ``[B, T]`` says so; only tokens ``kept`` ``[B, T]`` are there at all."""
        rows, columns = kept.nonzero(as_tuple=True)
        restarted = restarts[rows, columns]
        edges = rows[1:] != rows[:-1]
        opens = restarted.clone()
        opens[:1] = True
        opens[1:] |= edges
        (firsts,) = opens.nonzero(as_tuple=True)
        owners = rows[firsts]
        lengths = torch.diff(firsts, append=firsts.new_tensor([len(rows)]))
        last = torch.ones_like(owners, dtype=torch.bool)
        last[:-1] = owners[1:] != owners[:-1]
        order = lengths.argsort(descending=True, stable=True)
        places = rows * kept.shape[1] + columns
        return _Runs(places, firsts[order], lengths[order], owners[order], restarted[firsts][order], last[order])

    @cached_property
    def spans(self) -> tuple[torch.Tensor, ...]:
        """Places ``[runs, columns]`` to read together, as many columns as the shortest run has left.

        The first of them holds all runs, each later one those that go on.
        """
        lengths, done, found = self.lengths.tolist(), 0, []
        for stop in sorted(set(lengths)):
            going = sum(length >= stop for length in lengths)
            columns = torch.arange(done, stop, device=self.places.device)
            found.append(self.places[self.firsts[:going, None] + columns])
            done = stop
        return tuple(found)


class LstmBlock(nn.Module):
    """A layer norm, one layer of LSTM and dropout, added to the input."""

    def __init__(self, config: LstmConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.lstm = nn.LSTM(config.hidden_size, config.hidden_size, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, inputs: torch.Tensor, runs: _Runs | None, state: State) -> tuple[torch.Tensor, State]:
        """Outputs ``[B, T, H]`` of inputs ``[B, T, H]``, and the state (two ``[1, B, H]``) after the given one.

        With ``runs``, what belongs to none of them is passed on unread.
        """
        normed = self.norm(inputs)
        read, after = self._run(normed, state) if runs is None else self._run_apart(normed, runs, state)
        return inputs + self.dropout(read), after

    def _run_apart(self, inputs: torch.Tensor, runs: _Runs, before: State) -> tuple[torch.Tensor, State]:
        """Read each run as a row of its own; outputs go back to where the inputs were.

        torch's packed sequences do the same one column at a time, several times slower on processors.
        """
        goes_on = (~runs.fresh).to(inputs.dtype)[:, None]
        hidden, cell = (part[:, runs.owners] * goes_on for part in before)
        flat = inputs.flatten(0, 1)
        found, ended = [], []
        for span in runs.spans:
            going = len(span)
            ended.append((hidden[:, going:], cell[:, going:]))
            read, (hidden, cell) = self._run(flat[span], (hidden[:, :going], cell[:, :going]))
            found.append(read.flatten(0, 1))
        ended.append((hidden, cell))
        places = torch.cat([span.flatten() for span in runs.spans])
        outputs = torch.zeros_like(flat).index_copy(0, places, torch.cat(found))
        ends = (torch.cat(parts[::-1], dim=1)[:, runs.last] for parts in zip(*ended, strict=True))
        after = [part.index_copy(1, runs.owners[runs.last], end) for part, end in zip(before, ends, strict=True)]
        return outputs.view_as(inputs), (after[0], after[1])

    def _run(self, inputs: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """The layer itself. On processors it stays out of bfloat16, which few of them have an LSTM for."""
        with torch.autocast("cpu", enabled=False) if inputs.device.type == "cpu" else contextlib.nullcontext():
            outputs, after = self.lstm(inputs, state)
        return outputs, after


class LstmForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]  # mypy skips transformers
    """The LSTM language model; saves, loads and generates as any model of transformers."""

    config_class = LstmConfig
    _is_stateful = True  # a state cannot be taken back by a few tokens, as assisted decoding would have it
    _tied_weights_keys = {"lm_head.weight": "embeddings.weight"}  # noqa: RUF012  # transformers' own convention

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(LstmBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: LstmCache | None = None,
        use_cache: bool | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits ``[B, T, V]`` (or of the last ``logits_to_keep`` positions) of ``input_ids`` ``[B, T]``.

        Positions that ``attention_mask`` (``[B, T]``, or longer on the left by what the cache has read) marks 0 are
        skipped wherever they are. Where ``position_ids`` ``[B, T]`` are 0 the state starts anew, so that packed
        documents do not see one another. ``labels`` ``[B, T]`` are shifted here; -100 is left out of the loss.
        """
        use_cache = bool(self.config.use_cache if use_cache is None else use_cache) and not self.training
        cache = past_key_values if past_key_values is not None else LstmCache()
        runs = _runs(input_ids, attention_mask, position_ids, first=cache.state is None)
        outputs = self.dropout(self.embeddings(input_ids))
        hidden, cell = cache.state if cache.state is not None else self._empty_state(outputs)
        after = []
        for place, block in enumerate(self.blocks):
            outputs, state = block(outputs, runs, (hidden[place : place + 1], cell[place : place + 1]))
            after.append(state)
        if use_cache or past_key_values is not None:
            hidden, cell = (torch.cat(parts) for parts in zip(*after, strict=True))
            cache.update((hidden, cell), input_ids.shape[1])
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(self.norm(outputs[:, kept]))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache if use_cache else None)

    def make_cache(self) -> LstmCache:
        """An empty cache for ``past_key_values``."""
        return LstmCache()

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings."""
        return self.embeddings

    def get_output_embeddings(self) -> nn.Module:
        """The output layer."""
        return self.lm_head

    def _empty_state(self, inputs: torch.Tensor) -> State:
        shape = (self.config.num_hidden_layers, len(inputs), self.config.hidden_size)
        return inputs.new_zeros(shape), inputs.new_zeros(shape)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # generate() then leaves the cache to forward()


def _runs(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None, *, first: bool
) -> _Runs | None:
    """The runs of a batch ``[B, T]``; None where each row is one. ``first``: there is no state that rows go on from."""
    kept = torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask is not None:
        kept = attention_mask[:, -input_ids.shape[1] :].bool()
    restarts = torch.zeros_like(kept)
    if position_ids is not None:
        restarts = (position_ids == 0).expand_as(kept) & kept
    # From an empty state, a restart in the first column changes nothing.
    cut = restarts[:, 1:] if first else restarts
    return _Runs.find(kept, restarts) if bool(cut.any()) or not bool(kept.all()) else None


AutoConfig.register(LstmConfig.model_type, LstmConfig)
AutoModelForCausalLM.register(LstmConfig, LstmForCausalLM)
