"""The one exception that is meant for the person who runs Leuko."""


class LeukoError(Exception):
    """Something the user can mend.

    The message is one line: what was seen, what was expected, what to do next.
    """
