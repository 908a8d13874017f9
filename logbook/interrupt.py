"""Ctrl-C and SIGTERM: the first asks for a checkpoint, a second stops at once."""

import signal
from types import FrameType
from typing import Any

GRACE_S = 7.0
"""Seconds until a run that reaches no checkpoint stops all the same, and goes on from its last one later."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop. Like Ctrl-C it passes through whatever only handles errors.

    Attributes:
        signal_number: By which signal.
    """

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class Interruption:
    """While it is entered, `requested` is the number of the signal that asked to stop, 0 before that."""

    def __init__(self) -> None:
        self.requested = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Stop here if asked to; called where a checkpoint has just been written."""
        if self.requested:
            raise Interrupted(self.requested)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            raise Interrupted(self.requested)
        self.requested = number
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)
