"""A file on a disk that has room for so many bytes."""

import errno
import os
from typing import Any, BinaryIO


class FullAfter:
    """Writes what there is room for, then fails as the operating system does.

    Args:
        file: open for writing.
        room: bytes.
    """

    def __init__(self, file: BinaryIO, room: int) -> None:
        """Nothing written yet."""
        self.file, self.room = file, room

    def write(self, content: bytes) -> int:
        """As many bytes as fit."""
        self.file.write(content[: self.room])
        if len(content) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(content)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the file's."""
        return getattr(self.file, name)

    def __enter__(self) -> "FullAfter":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.file.close()
