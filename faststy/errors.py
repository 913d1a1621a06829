"""The exceptions for what a user can mend."""

from collections.abc import Iterator
from contextlib import contextmanager


class FaststyError(Exception):
    """One clear sentence: what is wrong, where, and what to do."""


class UnwritableError(FaststyError):
    """A file cannot be written, and the next one would fare no better."""


@contextmanager
def told() -> Iterator[None]:
    """Ends a script that raises a FaststyError with its sentence, and exit status 1."""
    try:
        yield
    except FaststyError as error:
        raise SystemExit(f"error: {error}") from error
