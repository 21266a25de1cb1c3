"""Scratch memory of a compiled loop, laid out before it runs."""

SLOT = 64  # bytes; a vector register never straddles two lines of the cache


class Arena:
    """First-fit places in one block of memory, each reused once nothing refers to it."""

    def __init__(self) -> None:
        """Start empty."""
        self.total = 0
        self._free: list[tuple[int, int]] = []  # (start, bytes), by start
        self._size: dict[int, int] = {}
        self._references: dict[int, int] = {}

    def take(self, size: int) -> int:
        """Start of a place of at least `size` bytes, with one reference.

        >>> arena = Arena()
        >>> first, second = arena.take(100), arena.take(8)
        >>> arena.drop(first)
        >>> first, second, arena.take(64), arena.total
        (0, 128, 0, 192)
        """
        size = max(SLOT, -(-size // SLOT) * SLOT)
        start = self._fit(size)
        self._size[start], self._references[start] = size, 1
        return start

    def _fit(self, size: int) -> int:
        for place, (start, room) in enumerate(self._free):
            if room >= size:
                self._free[place : place + 1] = [(start + size, room - size)] * (room > size)
                return start
        self.total += size
        return self.total - size

    def hold(self, start: int) -> None:
        """One more reference."""
        self._references[start] += 1

    def drop(self, start: int) -> None:
        """One reference less; the last one frees the place."""
        self._references[start] -= 1
        if self._references[start]:
            return
        del self._references[start]
        merged: list[tuple[int, int]] = []
        for at, room in sorted([*self._free, (start, self._size.pop(start))]):
            if merged and sum(merged[-1]) == at:
                merged[-1] = (merged[-1][0], merged[-1][1] + room)
            else:
                merged.append((at, room))
        self._free = merged
