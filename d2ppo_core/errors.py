"""The one exception type for mistakes of a user or of the user's files."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """What is wrong, where, and what to do, in one sentence. The command line prints it and exits with code 2."""


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """"; did you mean X?" for a word that looks like some of these, else nothing: to be put behind what is wrong."""
    near = difflib.get_close_matches(word, list(words), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def choose(word: str, words: Iterable[str]) -> str:
    """Which of these words may have been meant, or all of them: to be put behind what is wrong."""
    words = list(words)
    return did_you_mean(word, words) or f"; choose one of {', '.join(words)}"


@contextmanager
def explain_os_errors(what: str, path: str | Path) -> Iterator[None]:
    """Turn an operating-system error met while `what` at `path` into a `UserError` that names the fix."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"{what} {path}: the disk is full; free some space and go on by the same command with resume=true"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"{what} {path}: no permission; choose another folder or change its owner") from error
        if error.errno == errno.ENOENT:
            raise UserError(f"{what} {path}: there is no such file or folder; check the path") from error
        raise UserError(f"{what} {path}: {error.strerror or error}; check the file and the disk") from error


def too_small(*bounds: tuple[str, float, float]) -> list[str]:
    """What is wrong with options given as (name, value, least): a phrase for each below its least value."""
    return [f"{name}={value} must be at least {least}" for name, value, least in bounds if value < least]
