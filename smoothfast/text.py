"""Text from files, file names and arguments made fit for a terminal, which takes some characters for orders."""

from __future__ import annotations

LINES = "\n\t"  # what text may hold beside characters that are printed


def printable(text: str, kept: str = LINES) -> str:
    """Writes what is neither printed nor a line break or tab as its escape, such as \\x1b or \\u202e.

    Escape sequences colour, move and hide what stands there already, or set the title of a window; carriage returns and
    backspaces overwrite it; marks of direction turn it around; and lone surrogates, of file names that are not UTF-8,
    cannot be written at all.
    """
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode() for char in text
    )


def one_line(text: str) -> str:
    """Printable text whose line breaks and tabs are escaped too, as for the cell of a table."""
    return printable(text, "")
