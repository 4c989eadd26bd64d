"""The console of all commands, which prints outside text as text.

Markup, emoji codes and highlighting are off, and control characters are escaped. Styles of our own
are arguments of `plain` or of a table.
"""

import os
from collections.abc import Iterable
from typing import IO, Any, NamedTuple

import rich.console
from rich.console import ConsoleDimensions, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from nanoevolve_jax.escaping import visible, visible_lines
from nanoevolve_jax.terminal.streams import SafeStream

NARROWEST, WIDEST = 20, 500  # columns
READABLE = 80  # minimum width of tables; a narrower terminal breaks their lines
LOWEST, HIGHEST = 10, 1000  # lines
_SHOWN = Style(conceal=False, blink=False, blink2=False)  # libraries print through a live picture


def plain(text: object = "", style: str = "", **options: Any) -> Text:
    """Returns outside text in one line, as Rich draws it; options are those of `rich.text.Text`."""
    return Text(visible(text), style=style, **options)


def joined(lines: Iterable[Text]) -> Text:
    """Returns styled lines below one another."""
    return Text("\n").join(lines)


class Console(rich.console.Console):
    """A console that interprets nothing of what it prints."""

    def __init__(self, **options: Any):
        """Takes the options of `rich.console.Console`.

        COLUMNS and LINES are ignored unless they are positive numbers. FORCE_COLOR enables colours
        but no live picture, because lines of a log cannot be erased.
        """
        environ = options.pop("_environ", os.environ)
        sizes = ("COLUMNS", "LINES")
        environ = {k: v for k, v in environ.items() if k not in sizes or _is_positive(v)}
        off = {"markup": False, "emoji": False, "highlight": False}
        super().__init__(**off, **options, _environ=environ)
        if "FORCE_COLOR" in environ and options.get("force_terminal") is None:
            self.is_interactive = self.is_interactive and self.file.isatty()

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and lines, within limits in which tables can be read."""
        width, height = super().size
        return ConsoleDimensions(
            min(max(width, NARROWEST), WIDEST), min(max(height, LOWEST), HIGHEST)
        )

    @property
    def file(self) -> IO[str]:
        """Where the console writes."""
        file = super().file
        return _Styled(file) if isinstance(file, SafeStream) else file

    def print_line(self, line: object) -> None:
        """Prints one line, however wide it is."""
        self.print(plain(line), soft_wrap=True)

    def page(self, *parts: RenderableType, most: int = WIDEST) -> None:
        """Prints tables and paragraphs, at most `most` columns wide."""
        width = min(max(self.width, READABLE), most)
        self.print(_Wide(Group(*parts), width), crop=False)

    def show(self, rendered: str) -> None:
        """Writes what this console has rendered, with its colours."""
        self.file.write(rendered)
        self.file.flush()

    def render_str(self, text: str, **options: Any) -> Text:
        """Returns a string as text without markup; see `rich.console.Console`."""
        options |= {"markup": False, "emoji": False, "highlight": False, "highlighter": None}
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Renders with control characters escaped; see `rich.console.Console`."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            if control:
                yield segment
                continue
            if style and (style.link or style.conceal or style.blink or style.blink2):
                style = style.update_link(None) + _SHOWN
            yield Segment(visible_lines(text), style)

    def on_broken_pipe(self) -> None:
        """Lets `command.run` end the command."""
        raise


class _Styled:
    """A safe stream that lets escape sequences through."""

    def __init__(self, stream: SafeStream):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write_styled(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Wide(NamedTuple):
    """Content with a width of its own, which may exceed the width of the console."""

    content: RenderableType
    width: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        yield from console.render(self.content, options.update_width(self.width))


def _is_positive(digits: str) -> bool:
    try:
        return int(digits) > 0
    except ValueError:
        return False
