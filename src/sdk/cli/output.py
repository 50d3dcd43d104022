"""What commands print: tables, JSON, YAML or names on stdout; progress on a terminal's stderr."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click

from .documents import to_plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

PIPE_WIDTH = 4_096
"""Columns where no terminal is: nothing is cut off for a program that reads it."""

FORMATS = ("table", "json", "yaml", "name")

STYLES = {
    "SUCCEEDED": "green",
    "ACTIVE": "green",
    "RUNNING": "cyan",
    "ASSIGNED": "blue",
    "FAILED": "red",
    "PAUSED": "yellow",
    "CANCELLED": "yellow",
    "REVOKED": "yellow",
    "FIRED": "green",
    "MISSED": "red",
    "BRAKE": "red",
    "unreachable": "red",
    "leader": "green",
}


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """A column of a table: its heading, and what it shows of a thing."""

    heading: str
    show: Callable[[T], str]
    right: bool = False


def output_option(function: F) -> F:
    """The -o option of a command that reads."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="How to print it.",
    )(function)


def rows_option(function: F) -> F:
    """The -o option of a command that reads what has no names."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice([each for each in FORMATS if each != "name"]),
        default="table",
        show_default=True,
        help="How to print it.",
    )(function)


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def printable(text: str) -> str:
    """With what would break a line or speak to the terminal spelled out: others wrote it."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def build_table(columns: Sequence[Column[T]], things: Iterable[T]) -> Table:
    """A rich table without lines, as kubectl's."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column.heading, justify="right" if column.right else "left", no_wrap=True)
    for thing in things:
        cells = [printable(column.show(thing)) for column in columns]
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in cells))
    return table


def print_table(columns: Sequence[Column[T]], things: Iterable[T]) -> None:
    """A table on stdout; plain, without trailing blanks, where no terminal is."""
    from rich.console import Console

    table = build_table(columns, things)
    if sys.stdout.isatty():
        _console().print(table)
        return
    plain = io.StringIO()
    Console(file=plain, width=PIPE_WIDTH, highlight=False).print(table)
    for line in plain.getvalue().splitlines():
        print(line.rstrip())


def print_list(
    output: str, columns: Sequence[Column[T]], things: Iterable[T], nothing: str
) -> None:
    """Things in the format asked for. nothing: said on stderr where a table would be empty."""
    found = list(things)
    if output == "json":
        print(json.dumps([to_plain(thing) for thing in found], indent=2, ensure_ascii=False))
    elif output == "yaml":
        print(_yaml([to_plain(thing) for thing in found]), end="")
    elif output == "name":
        for thing in found:
            print(name_of(thing))
    elif found:
        print_table(columns, found)
    else:
        print(nothing, file=sys.stderr)


def print_one(output: str, columns: Sequence[Column[T]], thing: T) -> None:
    """One thing in the format asked for."""
    if output == "json":
        print(json.dumps(to_plain(thing), indent=2, ensure_ascii=False))
    elif output == "yaml":
        print(_yaml(to_plain(thing)), end="")
    elif output == "name":
        print(name_of(thing))
    else:
        print_table(columns, [thing])


def print_line(output: str, thing: Any) -> None:
    """One thing of a stream: a line of JSON, a YAML document, a name."""
    if output == "json":
        print(json.dumps(to_plain(thing), ensure_ascii=False), flush=True)
    elif output == "yaml":
        print("---\n" + _yaml(to_plain(thing)), end="", flush=True)
    else:
        print(name_of(thing), flush=True)


def name_of(thing: Any) -> str:
    """Its resource name."""
    return str(thing.name)


def _yaml(plain: Any) -> str:
    import yaml

    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=PIPE_WIDTH))


@contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Shows that something is waited for; the function given changes the words."""
    if not sys.stderr.isatty():
        yield lambda words: None
        return
    with _console(stderr=True).status(text) as status:
        yield lambda words: status.update(words)


@contextmanager
def transfer(text: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of bytes; the function given takes those done, and those in all."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich import progress

    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=_console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def live_table(columns: Sequence[Column[T]]) -> Iterator[Callable[[Sequence[T]], None]]:
    """A table on the terminal that is drawn anew with each call of the function given."""
    from rich.live import Live

    console = _console()
    rows_max = max(4, console.height - 3)
    with Live(console=console, refresh_per_second=10, transient=False) as live:
        yield lambda things: live.update(build_table(columns, things[-rows_max:]))
