"""The exceptions for what a user can mend."""


class FaststyError(Exception):
    """One clear sentence: what is wrong, where, and what to do."""


class UnwritableError(FaststyError):
    """A file cannot be written, and the next one would fare no better."""
