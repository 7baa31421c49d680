"""One chart per scenario: a bar per server with the median, a whisker from minimum to maximum."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from report import COLUMNS, OURS, Column, cases, ordered, values

MODULE, PACKAGE = "matplotlib", "python3-matplotlib"
OUR_COLOUR, PEER_COLOUR, INK = "#d9480f", "#8d99ae", "#1b1f24"
BAR_HEIGHT, PANEL_WIDTH = 0.72, 4.4
# Inches: of a line of the chart, of what stands above and below, and of the names at its left.
LINE, FRAME, NAMES = 0.27, 1.15, 2.2


@dataclass(frozen=True)
class Line:
    """A line of the chart: a server's bar, or the heading of a case."""

    label: str
    row: dict | None


def missing() -> str | None:
    """Why no charts can be drawn, or None."""
    if importlib.util.find_spec(MODULE) is None:
        return f"{MODULE} is not installed for this Python (apt install {PACKAGE})"
    return None


def draw_all(report: dict, directory: Path) -> list[Path]:
    """One SVG per scenario that has samples, named after it; needs matplotlib."""
    directory.mkdir(parents=True, exist_ok=True)
    return [draw(result, report, directory / f"{result['name']}.svg")
            for result in report["scenarios"] if result["rows"]]


def lines_of(result: dict) -> list[Line]:
    """The lines from top to bottom, in the order of the table."""
    found = []
    for case in cases(result):
        if case:
            found.append(Line(case, None))
        found += [Line(row["server"], row) for row in ordered(result, case)]
    return found


def draw(result: dict, report: dict, path: Path) -> Path:
    import matplotlib
    from matplotlib.figure import Figure

    columns = [column for column in COLUMNS[result["kind"]]
               if column.axis and any(values(row, column.key) for row in result["rows"])]
    lines = lines_of(result)
    # The same samples give the same file: element names are drawn from this salt, not at random.
    with matplotlib.rc_context({"svg.hashsalt": result["name"], "font.size": 9,
                                "text.color": INK, "axes.labelcolor": INK,
                                "xtick.color": INK, "ytick.color": INK}):
        figure = Figure(
            figsize=(NAMES + PANEL_WIDTH * len(columns), FRAME + LINE * len(lines)),
            layout="constrained", facecolor="white")
        panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for panel, column in zip(panels, columns):
            draw_panel(panel, column, lines)
        name_lines(panels[0], lines)
        figure.suptitle(result["title"], fontsize=11, fontweight="bold")
        figure.supxlabel(caption(report), fontsize=7)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})
    return path


def draw_panel(panel, column: Column, lines: list[Line]) -> None:
    """The bars of one column, each with its median written beside it."""
    largest = 0.0
    for place, line in enumerate(lines):
        found = values(line.row, column.key) if line.row else []
        if not found:
            continue
        middle, low, high = median(found), min(found), max(found)
        largest = max(largest, high)
        panel.barh(place, middle, BAR_HEIGHT,
                   color=OUR_COLOUR if line.label.startswith(OURS) else PEER_COLOUR)
        if len(found) > 1:
            panel.errorbar(middle, place, xerr=[[middle - low], [high - middle]],
                           ecolor=INK, elinewidth=1, capsize=3, fmt="none")
        panel.annotate(f"{middle:,.{column.digits}f}", (high, place), xytext=(5, 0),
                       textcoords="offset points", va="center", fontsize=8)
    panel.set_xlim(0, largest * 1.2 or 1)
    panel.set_xlabel(f"{column.axis} ({'lower' if column.lower else 'higher'} is better)")
    panel.xaxis.set_major_locator(few_ticks())
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    panel.grid(axis="x", color="#d0d7de", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def few_ticks():
    from matplotlib.ticker import MaxNLocator
    return MaxNLocator(nbins=6)


def name_lines(panel, lines: list[Line]) -> None:
    panel.set_yticks(range(len(lines)), [line.label for line in lines])
    panel.set_ylim(len(lines) - 0.4, -0.6)
    for label, line in zip(panel.get_yticklabels(), lines):
        if line.row is None or line.label == OURS:
            label.set_fontweight("bold")


def caption(report: dict) -> str:
    facts, settings = report["environment"], report["settings"]
    rounds = settings["rounds"]
    return (f"median of {rounds} rounds, whiskers from minimum to maximum" if rounds > 1
            else "one round") + (
        f"; {facts['cores']} cores, Linux {facts['kernel']}, {facts['fileSystem']}; "
        f"commit {facts['commit']}, {facts['date']}")
