"""The one exception that is meant for the person who runs Leuko."""


class LeukoError(Exception):
    """Something the user can mend.

    The message is one line: what was seen, what was expected, what to do next.
    """


def first_line(error: BaseException) -> str:
    """What another library's exception says, in one line; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
