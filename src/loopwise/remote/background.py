"""One event loop, in a thread of its own, for all that is asked of remote models."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """An event loop that outlives those of its callers.

    A rollout runs in an event loop that ends with it. Connections and the count of calls at a time must not end there.
    The thread starts with the first work.
    """

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._closers: list[Callable[[], Awaitable[Any]]] = []

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work`` there, from any event loop; cancelled here, it is cancelled there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._started()))

    def at_end(self, closer: Callable[[], Awaitable[Any]]) -> None:
        """Have ``closer`` awaited there when the loop ends. Call it from work that runs there."""
        self._closers.append(closer)

    def close(self) -> None:
        """Cancel what still runs, await the closers, end the thread. It may be used again afterwards."""
        with self._starting:
            loop, end, thread = self._loop, self._end, self._thread
            self._loop = self._end = self._thread = None
        if loop is not None and end is not None and thread is not None:
            loop.call_soon_threadsafe(end.set)
            thread.join()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                ready = threading.Event()
                # A daemon: a run that ends by an error must not wait for a server that hangs.
                self._thread = threading.Thread(
                    target=lambda: asyncio.run(self._live(ready)), name="remote models", daemon=True
                )
                self._thread.start()
                ready.wait()
            assert self._loop is not None
            return self._loop

    async def _live(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        end = self._end = asyncio.Event()
        ready.set()
        await end.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        closers, self._closers = self._closers, []
        await asyncio.gather(*(closer() for closer in closers), return_exceptions=True)
