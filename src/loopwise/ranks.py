"""Several processes that run one program together, as ``torchrun`` starts them.

Every rank runs the same deterministic program on the same data, and holds the same state after each step. Rank 0 alone
writes and speaks: what depends on its disk or clock is done there and its outcome shared (``lead``). What is worth
dividing (work units of a rollout, gradients of micro-batches) is dealt to the ranks in turn and put together again in
the order of the units, so that the result does not depend on how many ranks there are.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from loopwise.errors import ConfigError, RankError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
PATIENCE = timedelta(hours=2)
"""How long a rank waits for the others: they may be drawing a long unit, or waiting for room on the disk."""
ARRIVAL = timedelta(minutes=5)
"""How long a rank waits at its start for the others to start."""
_MEND = "Unset RANK and WORLD_SIZE to run one process by itself, or start all of them with torchrun."


class _FailedElsewhereError(RankError):
    """Rank 0 failed, and tells it itself."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that run the program; ``local_*`` counts those on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    def waves(self, units: Sequence[T]) -> list[Sequence[T]]:
        """Units in hands of one for each rank, in order; the last hand may be smaller."""
        return [units[start : start + self.world] for start in range(0, len(units), self.world)]

    def lead(self, action: Callable[[], T]) -> T:
        """Have rank 0 do ``action``; all get what it returned. Where it raises, the others raise RankError.

        All ranks must call it at the same place of the program, and ``action`` must not call it again.
        """
        if self.world == 1:
            return action()
        if not self.first:
            done, outcome = self._broadcast(None)
            if not done:
                raise _FailedElsewhereError(f"rank 0 failed: {outcome}")
            return cast(T, outcome)
        try:
            result = action()
        except Exception as error:
            with contextlib.suppress(RankError):  # the error of the action is the one to report
                self._broadcast((False, str(error)))
            raise
        self._broadcast((True, result))
        return result

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on each of them."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.world
        with _within_reach():
            dist.all_gather_object(found, value)
        return found

    def agree(self, what: str, value: object) -> None:
        """Raise RankError, beginning with ``what``, unless all ranks hold the same value; a check, and a barrier."""
        apart = sorted({rank for rank, theirs in enumerate(self.gather(value)) if theirs != value})
        if apart:
            raise RankError(
                f"{what} on rank {self.rank}: not as on rank {apart[0]}. Give all ranks the same files, versions and "
                "kind of processor."
            )

    def exchange(self, rows: torch.Tensor) -> torch.Tensor:
        """Row r of every rank's ``[world, N]`` to rank r: its ``[world, N]`` has one row from each rank, in order."""
        import torch
        import torch.distributed as dist

        received = torch.empty_like(rows)
        with _within_reach():
            dist.all_to_all_single(received, rows)
        return received

    def assemble(self, share: torch.Tensor) -> torch.Tensor:
        """Every rank's ``[N]``, one after the other, on each of them: ``[world * N]``."""
        import torch.distributed as dist

        whole = share.new_empty(self.world * len(share))
        with _within_reach():
            dist.all_gather_single(whole, share)
        return whole

    def _broadcast(self, value: Any) -> Any:
        import torch.distributed as dist

        box = [value]
        with _within_reach():
            dist.broadcast_object_list(box, src=0)
        return box[0]


ALONE = Ranks()


def launched() -> Ranks:
    """The place that a launcher such as ``torchrun`` gave this process, by its environment; ALONE without one."""
    rank, world = _number("RANK"), _number("WORLD_SIZE")
    if rank is None or world is None or world == 1:
        return ALONE
    local_rank, local_world = _number("LOCAL_RANK"), _number("LOCAL_WORLD_SIZE")
    return Ranks(rank, world, rank if local_rank is None else local_rank, local_world or world)


def _number(variable: str) -> int | None:
    value = os.environ.get(variable, "")
    return int(value) if value.isdigit() else None


def current_ranks() -> Ranks:
    """The ranks this process has joined; ALONE where it has joined none, whatever its environment says."""
    ranks = launched()
    if ranks.world == 1:
        return ALONE
    import torch.distributed as dist

    return ranks if dist.is_initialized() else ALONE


@contextlib.contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the others for as long as the block runs, where there are others and they are not joined yet.

    Whichever rank fails first raises its error; the others end with SystemExit, so that people see it once. Raises
    ConfigError for an environment that is no launcher's, and RankError where the others do not come.
    """
    ranks = launched()
    if ranks.world == 1 or current_ranks() != ALONE:
        yield ranks
        return
    import torch
    import torch.distributed as dist

    _check_place(ranks)
    # The processor's backend carries what is no tensor of a GPU, whatever the device of the run.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = _meeting_place(ranks)
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=PATIENCE)
    try:
        yield ranks
    except BaseException as error:
        if isinstance(error, _FailedElsewhereError) or not _fails_first(store):
            raise SystemExit(1) from error
        raise
    finally:
        # Where a rank failed, this closes its connections: the others stop waiting for it.
        dist.destroy_process_group()


def _check_place(ranks: Ranks) -> None:
    """Raise ConfigError unless the environment is one in which ranks can find each other."""
    if ranks.rank >= ranks.world:
        raise ConfigError(f"RANK={ranks.rank} is none of WORLD_SIZE={ranks.world} ranks, counted from 0. {_MEND}")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        place = f"RANK={ranks.rank} and WORLD_SIZE={ranks.world} are set in the environment"
        raise ConfigError(f"{place}, and {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not. {_MEND}")
    port = os.environ["MASTER_PORT"]
    if not port.isdigit() or not 0 < int(port) < 2**16:
        raise ConfigError(f"MASTER_PORT={port} in the environment is no port, which has a number up to 65535. {_MEND}")


def _meeting_place(ranks: Ranks) -> Any:
    """The store that all ranks have found; raises RankError if they do not come."""
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", timeout=ARRIVAL))
        store.set(f"loopwise/arrived/{ranks.rank}", "")
        store.wait([f"loopwise/arrived/{rank}" for rank in range(ranks.world)], ARRIVAL)
    except (RuntimeError, ValueError) as error:  # torch's errors of a store and of its address
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RankError(
            f"rank {ranks.rank} of {ranks.world} did not find all others at {address} within "
            f"{ARRIVAL.total_seconds() / 60:.0f} minutes. {_MEND}"
        ) from error
    store.set_timeout(PATIENCE)
    return store


def _fails_first(store: Any) -> bool:
    try:
        return int(store.add("loopwise/failures", 1)) == 1
    except RuntimeError:  # the launcher is gone: better told twice than never
        return True


@contextlib.contextmanager
def _within_reach() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # the backends raise nothing more precise
        raise RankError(
            "lost contact with another rank: it was killed, ran out of memory, or its machine is gone. Nothing that "
            "was committed is lost: start the same command with --resume."
        ) from error
