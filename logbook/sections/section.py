"""A part of the report's page: pictures, each with the sentence that says how to read it."""

from dataclasses import dataclass, field
from functools import cached_property

from matplotlib.figure import Figure

from logbook import plots


@dataclass(frozen=True)
class Picture:
    """A plot, and the sentence that says how to read it."""

    name: str
    title: str
    reading: str
    figure: Figure
    detail: str = ""

    @property
    def wide(self) -> bool:
        """Whether the plot of a network needs the room of two small ones."""
        return self.figure.get_figwidth() > 3.2

    @property
    def full(self) -> bool:
        """Whether the plot needs the whole width of the page."""
        return self.figure.get_figwidth() > plots.WIDTH + 1

    @cached_property
    def file(self) -> str:
        """The plot as the text of an SVG file."""
        return plots.svg(self.figure)

    @property
    def inline(self) -> str:
        """The plot for the page."""
        return plots.inline(self.file, self.name)


@dataclass(frozen=True)
class Grid:
    """A table, folded up behind its title, and the sentence that says how to read it."""

    title: str
    reading: str
    header: list[str]
    rows: list[list[str]]


@dataclass
class Section:
    """A part of the page: pictures and tables, and sentences about what is missing."""

    title: str
    intro: str = ""
    pictures: list[Picture] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layout: str = "pictures"  # a class of the page's style sheet
