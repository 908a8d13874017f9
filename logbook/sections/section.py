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
        """Whether the plot needs the room of two small ones."""
        return self.figure.get_figwidth() > 3.2

    @cached_property
    def file(self) -> str:
        """The plot as the text of an SVG file."""
        return plots.svg(self.figure)

    @property
    def inline(self) -> str:
        """The plot for the page."""
        return plots.inline(self.file, self.name)


@dataclass
class Section:
    """A part of the page: pictures, and sentences about what is missing."""

    title: str
    intro: str = ""
    pictures: list[Picture] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    layout: str = "pictures"  # a class of the page's style sheet
