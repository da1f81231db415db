"""How a row ends early."""


class BenchError(Exception):
    """The measurement failed: a wrong answer, a dead server, a bad tool."""


class SkipRow(Exception):
    """Something this row compares with is not installed here.

    The text says what is missing and how to get it.
    """
