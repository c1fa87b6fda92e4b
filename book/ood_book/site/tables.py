"""Tables of Markdown, for the parts of pages that are made from measured files."""

from collections.abc import Collection, Iterable, Sequence

__all__ = ["table"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: Collection[int] = (0,)) -> str:
    """Rows of cells under their heads; columns of words stand to the left, all others to the right.

    Args:
        head: a title for each column.
        rows: as many cells each.
        words: the columns that hold words.

    Example:
        >>> print(table(["detector", "s"], [["MSP", "1.0"]]), end="")
        | detector | s |
        | --- | ---: |
        | MSP | 1.0 |
    """
    sides = ["---" if column in words else "---:" for column in range(len(head))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, sides, *rows))
