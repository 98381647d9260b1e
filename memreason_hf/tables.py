"""
Aligned columns of text for the terminal.

Our own, because tables are also written into files and compared as text: a library would fit them to the terminal.
"""

from collections.abc import Sequence


def format_table(header: Sequence, lines: Sequence[Sequence]) -> str:
    """
    A table with a rule under the header and two spaces between columns. The first column is aligned on the left, the
    others on the right.

    Raises:
        ValueError: a line has more or fewer entries than the header.

    Example:

        >>> print(format_table(["hops", "accuracy"], [[2, "100.0"], [12, "98.5"]]))
        hops  accuracy
        ----  --------
        2        100.0
        12        98.5
    """
    table = [[str(entry) for entry in line] for line in (header, *lines)]
    for line in table:
        if len(line) != len(header):
            raise ValueError(f"A line of the table has {len(line)} entries, its header has {len(header)}: {line}.")
    widths = [max(map(len, column)) for column in zip(*table)]
    table.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            entry.ljust(width) if index == 0 else entry.rjust(width)
            for index, (entry, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in table
    )
