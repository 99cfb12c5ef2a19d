"""Give every NVML call a deadline, so that a hanging driver does not hang the guard.

May import the stdlib and this package's readings and nvml. A call into the driver can't be
cancelled, so it is made in a thread; if it does not return in time, it and every further call raise
NvmlFailed until it has. The guard treats that like any failure of NVML: it warns, kills nothing for
memory, and the run can still be stopped.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, cast

from runner.machine.nvml import Nvml, NvmlFailed, NvmlUnavailable
from runner.machine.readings import DeviceReading

OPEN_SECONDS = 60.0  # a driver without persistence mode wakes every GPU of the machine first
FIRST_SECONDS = 20.0  # and its first answers are slow
ANSWER_SECONDS = 2.0  # microseconds to milliseconds where it works

_T = TypeVar("_T")


class NvmlWithTimeout:
    """An Nvml whose questions end: a DeviceSource, and a context manager as Nvml is."""

    def __init__(self, nvml: Nvml | None = None) -> None:
        self._nvml = nvml or Nvml()
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._pending: _Call | None = None
        self._answered = False  # whether any GPU has answered at all

    def __enter__(self) -> Self:
        """Open it. Raises NvmlUnavailable, also where the driver does not answer."""
        threading.Thread(target=self._work, daemon=True, name="nvml").start()
        try:
            self._ask("nvmlInit", OPEN_SECONDS, self._nvml.open)
        except NvmlFailed as error:
            raise NvmlUnavailable(str(error), fatal=True) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A worker that hangs in the driver is left behind: being a daemon, it ends with the process
        self._calls.put(_Call(self._nvml.close, last=True))

    def devices(self) -> list[tuple[int, str | None]]:
        """As Nvml.devices. Raises NvmlFailed."""
        return self._ask("device list", ANSWER_SECONDS, self._nvml.devices)

    def read(self, index: int) -> DeviceReading:
        """As Nvml.read. Raises NvmlFailed."""
        seconds = ANSWER_SECONDS if self._answered else FIRST_SECONDS
        reading = self._ask(f"GPU {index}", seconds, lambda: self._nvml.read(index))
        self._answered = True
        return reading

    def accounting_peak(self, index: int, pid: int) -> int | None:
        """As Nvml.accounting_peak. Raises NvmlFailed."""
        question = f"GPU {index} accounting"
        return self._ask(question, ANSWER_SECONDS, lambda: self._nvml.accounting_peak(index, pid))

    def limit_in_force(self, indices: Iterable[int], cgroup: Path) -> int | None:
        """As Nvml.limit_in_force. Raises NvmlFailed."""
        return self._ask(
            "memory limits", ANSWER_SECONDS, lambda: self._nvml.limit_in_force(indices, cgroup)
        )

    def _ask(self, what: str, seconds: float, question: Callable[[], _T]) -> _T:
        """The answer; what the question raises; NvmlFailed where it has none in time."""
        if self._pending is not None:
            if not self._pending.done.is_set():
                raise NvmlFailed(
                    f"{what}: NVML has not answered since it was asked for {self._pending.what}"
                )
            self._pending = None  # it came back; its late answer says nothing about now
        call = _Call(question, what)
        self._calls.put(call)
        if not call.done.wait(seconds):
            self._pending = call
            raise NvmlFailed(f"{what}: NVML has not answered for {seconds:.0f} s")
        if call.error is not None:
            raise call.error
        return cast(_T, call.answer)

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            try:
                call.answer = call.question()
            except Exception as error:  # raised again where it was asked
                call.error = error
            call.done.set()
            if call.last:
                return


class _Call:
    """One question on its way."""

    def __init__(self, question: Callable[[], object], what: str = "", last: bool = False) -> None:
        self.question, self.what, self.last = question, what, last
        self.done = threading.Event()
        self.answer: object = None
        self.error: Exception | None = None
