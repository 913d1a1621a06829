"""The one exception for mistakes that a user can make and mend."""


class FaststyError(Exception):
    """One clear sentence: what is wrong, where, and what to do."""
