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


def shortened(text: str, most: int | None) -> str:
    """Text of at most so many characters, some of its middle left out; all of it where there is no limit."""
    if most is None or len(text) <= most:
        return text
    return f"{text[: most // 2]}…{text[len(text) - (most - most // 2 - 1) :]}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """The text of a number of things: 1 image, 3 images."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def duration(seconds: float) -> str:
    """The text of a time, in the two largest units that it has: 3.2 s, 42 s, 4 min 18 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for large, small, larger, smaller in ((86_400, 3_600, "d", "h"), (3_600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= large:
            return f"{whole // large} {larger} {whole % large // small} {smaller}"
    return f"{whole} s"


def rate(per_second: float) -> str:
    """The text of a rate, by the unit of time in which there is at least one."""
    for seconds, unit in ((1, "a second"), (60, "a minute"), (3600, "an hour")):
        if (value := per_second * seconds) >= 1:
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{value:.2g} {unit}"
