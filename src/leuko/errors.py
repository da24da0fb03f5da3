"""The one exception that is meant for the person who runs Leuko."""

import re


class LeukoError(Exception):
    """A problem the user can fix.

    The message is one line: what was seen, what was expected, what to do next.
    """


def in_one_line(error: BaseException) -> str:
    """All that another library's exception says, in one line; its type where it says nothing."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return re.sub(r":;", ":", "; ".join(lines)) or type(error).__name__
