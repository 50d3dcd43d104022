"""The clocks of a host, for tests that set them."""

from __future__ import annotations


class Host:
    """A Clock whose time passes only when it is told to."""

    def __init__(self) -> None:
        self._wall_ns = 1_800_000_000_000_000_000
        self._monotonic_ns = 5_000_000_000
        self.interruptions_ns: list[int] = []
        """How long this process is kept from going on before each of the next readings."""

    def pass_ns(self, elapsed_ns: int) -> None:
        """Time goes on."""
        self._wall_ns += elapsed_ns
        self._monotonic_ns += elapsed_ns

    def set_ns(self, step_ns: int) -> None:
        """Somebody sets the wall clock."""
        self._wall_ns += step_ns

    def _interrupt(self) -> None:
        if self.interruptions_ns:
            self.pass_ns(self.interruptions_ns.pop(0))

    def now_ns(self) -> int:
        """See Clock."""
        self._interrupt()
        return self._wall_ns

    def monotonic_ns(self) -> int:
        """See Clock."""
        self._interrupt()
        return self._monotonic_ns
