"""Where a run lives on disk: its folder, journal and checkpoints, and how a position is written and found again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from loopwise.config.blocks import Block
from loopwise.config.recipes import config_hash
from loopwise.errors import ConfigError, DiskFullError, OutputExistsError, ResumeError
from loopwise.loop import Position
from loopwise.models.folders import load_policy, save_policy
from loopwise.models.policy import Policy
from loopwise.ranks import ALONE, Ranks, current_ranks
from loopwise.runs.checkpoint import CheckpointStore
from loopwise.runs.disk import with_room
from loopwise.runs.files import replace_file, to_json
from loopwise.runs.journal import Journal
from loopwise.runs.lock import holder, run_lock
from loopwise.runs.state import read_state, write_state
from loopwise.runtime import Runtime, versions
from loopwise.types import Budget, Decision, Partial

T = TypeVar("T")
JOURNAL = "journal.db"
BASE = "base"


@dataclass(frozen=True)
class Workspace:
    """The folder of one or more runs that share a journal, held by this process alone, or by the first of its ranks.

    All that is read from or written to the journal and the folder goes through ``ask`` and ``store``, which rank 0 does
    for all; only a checkpoint's policies are loaded by each. ``note(level, message)`` tells the person watching;
    ``disk_wait`` is how many seconds a full disk is waited for.
    """

    out: Path
    journal: Journal
    note: Callable[[str, str], None]
    disk_wait: float = 600.0
    ranks: Ranks = ALONE

    def ask(self, question: Callable[[Journal], T]) -> T:
        """What the journal answers, on all ranks."""
        return self.ranks.lead(lambda: question(self.journal))

    def store(self, action: Callable[[], T]) -> T:
        """Run a write that can be repeated as a whole, on rank 0; a full disk pauses it until there is room."""

        return self.ranks.lead(lambda: self.store_alone(action))

    def store_alone(self, action: Callable[[], T]) -> T:
        """``store`` by this rank, whatever the others do: for a file that is its own."""

        def paused(message: str) -> None:
            self.note("warning", message)

        return with_room(action, place=self.out, wait_seconds=self.disk_wait, on_pause=paused)

    def run(self, run_id: str, keep: int) -> RunFiles:
        """The files of one run."""
        return RunFiles(self, run_id, CheckpointStore(self.out / "checkpoints" / run_id, keep=keep))


def check_out(out: Path, *, resume: bool) -> bool:
    """Whether ``out`` holds a journal. Raises OutputExistsError, or ResumeError where there is nothing to resume."""
    exists = (out / JOURNAL).exists()
    if resume and not exists:
        raise ResumeError(f"{out}: nothing to resume, there is no {JOURNAL}. Start without --resume.")
    if not resume and out.exists() and not _is_unused(out):
        mend = "Continue it with --resume, or choose another --out." if exists else "Choose another --out."
        raise OutputExistsError(f"{out}: exists already and is never overwritten. {mend}")
    return exists


@contextlib.contextmanager
def open_workspace(
    out: Path, *, resume: bool, note: Callable[[str, str], None], disk_wait: float
) -> Iterator[Workspace]:
    """Make a new run folder, or open one to resume. Raises OutputExistsError, ResumeError, RunBusyError.

    Of several ranks the first does; the others see its folder. Raises ConfigError where they do not.
    """
    ranks = current_ranks()
    if not ranks.first:
        _see_folder(out, ranks, None)
        yield Workspace(out, cast(Journal, _Elsewhere()), note, disk_wait, ranks)
        return
    exists = check_out(out, resume=resume)
    out.mkdir(parents=True, exist_ok=True)
    with run_lock(out), contextlib.closing(Journal.open(out / JOURNAL, create=not exists)) as journal:
        try:
            _see_folder(out, ranks, holder(out))
            yield Workspace(out, journal, note, disk_wait, ranks)
        except BaseException as error:
            paused = isinstance(error, DiskFullError | KeyboardInterrupt)
            with contextlib.suppress(Exception):  # the first error is the one to report, also on a full disk
                for run in journal.runs():
                    if run.status == "running":
                        journal.set_status(run.run_id, "paused" if paused else "failed")
            raise


class _Elsewhere:
    """What ranks without a journal have in its place."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"journal.{name}: only rank 0 has the journal. Go through Workspace.ask or Workspace.store.")


def _see_folder(out: Path, ranks: Ranks, mark: str | None) -> None:
    """Have every rank compare the lock of the folder it sees with the one that rank 0 holds."""
    if ranks.world == 1:
        return
    written = ranks.lead(lambda: mark)
    blind = [rank for rank, seen in enumerate(ranks.gather(holder(out) == written)) if not seen]
    if blind:
        raise ConfigError(
            f"{out}: rank {blind[0]} does not see the folder that rank 0 writes to. Choose an --out on a file system "
            "that all machines share."
        )


@dataclass(frozen=True)
class RunFiles:
    """One run's journal entries and checkpoints."""

    workspace: Workspace
    run_id: str
    checkpoints: CheckpointStore
    pending: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)

    @property
    def journal(self) -> Journal:
        return self.workspace.journal

    def ask(self, question: Callable[[Journal], T]) -> T:
        """What the journal answers, on all ranks."""
        return self.workspace.ask(question)

    def enter(self, kind: str, recipe: Block, fingerprint: Mapping[str, str], runtime: Runtime) -> None:
        """Enter a new run in the journal, or check that a known one has this very configuration and data.

        Raises ResumeError naming the keys and files that differ.
        """
        config = recipe.model_dump(mode="json")
        self.workspace.ranks.agree(f"run {self.run_id}: recipe, data and model", (config, dict(fingerprint)))
        known = self.ask(lambda journal: journal.run(self.run_id))
        if known is None:
            self.workspace.store(
                lambda: self.journal.create_run(
                    self.run_id, kind, config, config_hash(recipe), dict(fingerprint), versions(), runtime.threads
                )
            )
            return
        changed = [f'"{key}"' for key in _differences(known.config, config)]
        changed += [f"the {name}" for name, value in fingerprint.items() if known.fingerprint.get(name) != value]
        if changed:
            raise ResumeError(
                f"{self.workspace.out}: run {self.run_id} was started with another configuration; "
                f"different now: {', '.join(changed)}. Put it back, or start a new run with another --out."
            )
        self.workspace.store(lambda: self.journal.set_status(self.run_id, "running"))

    def save(self, position: Position) -> tuple[str, str]:
        """Write a position as a checkpoint; name and hash. It counts only once the journal names it."""
        partial = position.partial
        name = f"r{position.round:04d}" + (f"-s{partial.step:06d}" if partial else "")
        policies = {"policy": position.policy, "incumbent": position.incumbent}
        if partial:
            policies["partial"] = partial.policy
        ranks = self.workspace.ranks
        if ranks.world > 1:
            ranks.agree(f"checkpoint {name}: weights", {role: policy.id for role, policy in policies.items()})
        tree = {
            "round": position.round,
            "incumbent_round": position.incumbent_round,
            "budget": asdict(position.budget),
            "booked": list(position.booked),
            "policies": {role: policy.id for role, policy in policies.items()},
            "state": position.state,
            "one_state": position.incumbent_state is position.state,
            "incumbent_state": None if position.incumbent_state is position.state else position.incumbent_state,
            "partial": {"step": partial.step, "state": partial.state} if partial else None,
        }

        def write(folder: Path) -> None:
            (folder / "state").mkdir()
            write_state(folder / "state", tree)
            for policy in {policy.id: policy for policy in policies.values()}.values():
                save_policy(policy, folder / "policies" / policy.id)

        return name, self.workspace.store(lambda: self.checkpoints.save(name, write))

    def restore(self, runtime: Runtime) -> Position | None:
        """The newest position whose checkpoint verifies; damaged ones are quarantined and reported. None: a new run.

        Raises CheckpointError when none verifies.
        """
        folder = self.workspace.ranks.lead(self._newest)
        if folder is None:
            return None
        tree = read_state(folder / "state")
        names = set(tree["policies"].values())
        policies = {name: load_policy(folder / "policies" / name, runtime, judges=True) for name in names}
        roles: dict[str, Policy] = {role: policies[name] for role, name in tree["policies"].items()}
        partial = tree["partial"]
        # Before rank 0 goes on, and in time deletes the folder, all have read it.
        self.workspace.ranks.agree(f"checkpoint {folder.name}: contents", tree["policies"])
        return Position(
            policy=roles["policy"],
            state=tree["state"],
            incumbent=roles["incumbent"],
            incumbent_state=tree["state"] if tree["one_state"] else tree["incumbent_state"],
            incumbent_round=tree["incumbent_round"],
            round=tree["round"],
            budget=Budget(**tree["budget"]),
            booked=tuple(tree["booked"]),
            partial=Partial(partial["step"], roles["partial"], partial["state"]) if partial else None,
        )

    def _newest(self) -> Path | None:
        """The folder of the newest checkpoint that verifies; None where none was committed yet."""

        def bad(name: str, reason: str) -> None:
            self.journal.quarantine(self.run_id, name, reason)
            self.workspace.note("warning", f"checkpoint {name} is damaged ({reason}); using the one before")

        # Older ones were deleted on purpose; the newest have to be there.
        newest = self.journal.checkpoints(self.run_id)[: self.checkpoints.keep]
        found = self.checkpoints.load_newest(newest, bad)
        return found[1] if found else None

    def commit_round(
        self, position: Position, summary: Mapping[str, Any], decision: Decision | None, kept: Sequence[str]
    ) -> None:
        """Checkpoint first, then one transaction that names its hash."""
        checkpoint = self.save(position)
        self.workspace.store(
            lambda: self.journal.commit_round(
                self.run_id,
                round=position.round,
                summary=dict(summary),
                decision=decision,
                checkpoint=checkpoint,
                step_metrics=[(step, dict(metrics)) for step, metrics in self.pending],
                kept=kept,
                budget=position.budget,
            )
        )
        self._tidy()

    def commit_progress(self, position: Position) -> None:
        """A mid-round checkpoint."""
        assert position.partial is not None
        step = position.partial.step
        checkpoint = self.save(position)
        self.workspace.store(
            lambda: self.journal.commit_progress(
                self.run_id,
                round=position.round + 1,
                step=step,
                checkpoint=checkpoint,
                step_metrics=[(step, dict(metrics)) for step, metrics in self.pending],
            )
        )
        self._tidy()

    def _tidy(self) -> None:
        self.pending.clear()
        if self.workspace.ranks.first:
            self.checkpoints.collect([row.name for row in self.journal.checkpoints(self.run_id)])


def _is_unused(out: Path) -> bool:
    """Whether a folder is empty, or holds no more than a run that was killed before it began."""
    if not out.is_dir():
        return False
    names = {path.name for path in out.iterdir()}
    if not names <= {".lock", JOURNAL, f"{JOURNAL}-wal", f"{JOURNAL}-shm"}:
        return False
    if JOURNAL not in names:
        return True
    with contextlib.closing(Journal.open(out / JOURNAL, create=True)) as journal:
        return not journal.runs()


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(to_json(content, indent=2), encoding="utf-8")

    replace_file(path, write)


def _differences(before: Any, after: Any, key: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted(set(before) | set(after))
        return [
            place
            for name in names
            for place in _differences(before.get(name), after.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if before == after else [key]
