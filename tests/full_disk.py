"""A file on a disk that becomes full."""

import errno
import os
from typing import Any, BinaryIO


class FullAfter:
    """A file whose writes fail with ENOSPC if they are longer than `room`.

    Args:
        file: open for writing.
        room: bytes of a write that still fit.
    """

    def __init__(self, file: BinaryIO, room: int) -> None:
        self.file, self.room = file, room

    def write(self, content: bytes) -> int:
        """Write the bytes that fit; raise OSError if there are more."""
        self.file.write(content[: self.room])
        if len(content) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(content)

    def __getattr__(self, name: str) -> Any:
        """Delegate to the file."""
        return getattr(self.file, name)

    def __enter__(self) -> "FullAfter":
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.file.close()
