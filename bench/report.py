"""Medians, ratios, and how they are printed: text for a terminal, Markdown for a page."""

from dataclasses import dataclass
from statistics import median

OURS = "nbdpull"
QEMU = ("qemu-nbd", "qemu-storage-daemon")


@dataclass(frozen=True)
class Column:
    """A figure of a sample: `axis` names it in a chart, without one it is in the table only."""

    key: str
    title: str
    digits: int
    spread: bool = False
    axis: str = ""
    lower: bool = False


P50, P99, P999 = "p50", "p99", "p99.9"
# Figures beside the first of a scenario that get a ratio of their own where they were measured.
ALSO_COMPARED = {P99: "p99 latency", "peak": "peak RSS", "anonymous": "anonymous"}

# The first column is what rows are ordered and compared by.
COLUMNS = {
    "pull": [Column("value", "GB/s", 2, spread=True, axis="GB/s"),
             Column("server_cpu", "server s/GiB", 3, axis="server CPU s/GiB", lower=True),
             Column("client_cpu", "client s/GiB", 3),
             Column("cached", "MiB cached after", 0)],
    "io": [Column("value", "IOPS", 0, spread=True, axis="requests/s"), Column(P50, "p50 us", 0),
           Column(P99, "p99 us", 0, axis="latency, 99th percentile, us", lower=True),
           Column(P999, "p99.9 us", 0),
           Column("server_cpu", "server us/req", 1), Column("client_cpu", "client us/req", 1),
           Column("pull", "pull GB/s", 2)],
    "sync": [Column("value", "fsync p99 us", 0, spread=True, axis="fsync, 99th percentile, us",
                    lower=True),
             Column("sync_p50", "fsync p50 us", 0, axis="fsync, median, us", lower=True),
             Column("sync_p99.9", "fsync p99.9 us", 0), Column("syncs", "fsyncs/s", 0),
             Column("iops", "write IOPS", 0), Column("pull", "pull GB/s", 2)],
    "begin": [Column("value", "latency ms", 1, spread=True, axis="begin, ms", lower=True),
              Column("end", "end ms", 1, spread=True, axis="end, ms", lower=True),
              Column("hold", "hold us", 0, spread=True, axis="writes held, us", lower=True),
              Column("rss_before", "RSS before MiB", 0, spread=True),
              Column("rss_during", "RSS during MiB", 0, spread=True)],
    "push": [Column("value", "GB/s", 2, spread=True, axis="GB/s"), Column("seconds", "s", 2)],
    "resume": [Column("value", "job ms", 0, spread=True, axis="first answer of the job, ms",
                      lower=True),
               Column("guest", "guest ms", 0, spread=True, axis="first answer of a disk, ms",
                      lower=True),
               Column("guests", "last guest ms", 0, spread=True)],
    "pause": [Column("value", "pause p50 ms", 1, spread=True, axis="pause, median, ms", lower=True),
              Column("longest", "pause max ms", 1, spread=True, axis="pause, longest, ms",
                     lower=True),
              Column("usual", "usual write ms", 3)],
    "map": [Column("value", "extents/s", 0, spread=True, axis="extents/s"),
            Column("seconds", "s", 2), Column("server_cpu", "server CPU s", 2)],
    "memory": [Column("value", "PSS MiB", 1, spread=True, axis="PSS, MiB", lower=True),
               Column("rss", "RSS MiB", 1),
               Column("peak", "peak RSS MiB", 1, axis="peak RSS, MiB", lower=True),
               Column("anonymous", "anonymous MiB while reading", 1, spread=True,
                      axis="anonymous MiB while reading", lower=True),
               Column("processes", "processes", 0)],
}


def values(row: dict, key: str) -> list[float]:
    return [sample[key] for sample in row["samples"] if key in sample]


def cell(row: dict, column: Column) -> str:
    """A median with its range, or a dash where the row has no such figure."""
    found = values(row, column.key)
    if not found:
        return "-"
    def number(value: float) -> str:
        return f"{value:,.{column.digits}f}"
    text = number(median(found))
    if column.spread and len(found) > 1:
        text += f" [{number(min(found))}-{number(max(found))}]"
    return text


def cases(result: dict) -> list[str]:
    return list(dict.fromkeys(row["case"] for row in result["rows"]))


def lower_is_better(result: dict) -> bool:
    return COLUMNS[result["kind"]][0].lower


def ordered(result: dict, case: str) -> list[dict]:
    """The rows of a case: ours first, then the peers, the best first."""
    rows = [row for row in result["rows"] if row["case"] == case]
    sign = 1 if lower_is_better(result) else -1
    return sorted(rows, key=lambda row: (row["server"] != OURS,
                                         sign * median(values(row, "value"))))


def ratio(ours: dict, peer: dict, key: str = "value") -> str:
    mine, theirs = values(ours, key), values(peer, key)
    # A peer's figure may be too small for the clock: no multiple of nothing.
    text = f"{median(mine) / median(theirs):.2f}x" if median(theirs) else "no ratio to"
    text += f" {peer['server']}"
    if min(mine) <= max(theirs) and min(theirs) <= max(mine):
        text += " (ranges overlap)"
    return text


def compared(rows: list, case: str, other: str) -> list[str]:
    """A line with the median of one case as a multiple of another's, server by server."""
    found = {(row.server, row.case): [sample["value"] for sample in row.samples] for row in rows}
    return [f"{server}: {case}: {median(mine) / median(found[server, other]):.2f}x {other}"
            for (server, name), mine in found.items()
            if name == case and found.get((server, other))]


def ratios(result: dict, case: str) -> str:
    """Our median as a multiple of the best peer's and of qemu's; empty when there is no pair."""
    rows = ordered(result, case)
    peers = [row for row in rows if row["server"] != OURS]
    if not peers or len(peers) == len(rows):
        return ""
    parts = [f"best peer: {ratio(rows[0], peers[0])}"]
    for name in QEMU:
        named = [row for row in peers if row["server"] == name]
        if named:
            if named[0] is not peers[0]:
                parts.append(f"qemu: {ratio(rows[0], named[0])}")
            break
    if lower_is_better(result):
        parts[-1] += "; lower is better"
    for key, name in ALSO_COMPARED.items():
        measured = [row for row in peers if values(row, key)]
        if measured and values(rows[0], key):
            lowest = min(measured, key=lambda row: median(values(row, key)))
            parts.append(f"{name} (lower is better): {ratio(rows[0], lowest, key)}")
    return "; ".join(parts)


def table(result: dict) -> tuple[list[str], list[list[str]]]:
    """Heads and cells; columns that no row has are left out."""
    columns = [column for column in COLUMNS[result["kind"]]
               if any(values(row, column.key) for row in result["rows"])]
    with_case = cases(result) != [""]
    heads = (["case"] if with_case else []) + ["server"] + [column.title for column in columns]
    lines = [([row["case"]] if with_case else []) + [row["server"]]
             + [cell(row, column) for column in columns]
             for case in cases(result) for row in ordered(result, case)]
    return heads, lines


def rounds_text(result: dict) -> str:
    counts = sorted({len(row["samples"]) for row in result["rows"]})
    if not counts:
        return "no samples"
    return f"n={counts[0]}" if len(counts) == 1 else f"n={counts[0]}..{counts[-1]}"


def remarks(result: dict) -> list[str]:
    found = []
    for case in cases(result):
        text = ratios(result, case)
        if text:
            found.append((f"{case}: " if case else "") + f"{OURS} against the {text}")
    return found + result["notes"] + [f"ERROR {text}" for text in result["errors"]]


def machine(report: dict) -> list[str]:
    facts, settings = report["environment"], report["settings"]
    rounds = "1 round" if settings["rounds"] == 1 else f"{settings['rounds']} rounds"
    return [
        f"{facts['date']}, commit {facts['commit']} (executable built {facts['binaryBuilt']})",
        f"{facts['processor']}, {facts['cores']} cores for servers and clients together, "
        f"{facts['memoryGiB']} GiB, Linux {facts['kernel']}, {facts['fileSystem']}, "
        f"load at the start {facts['loadAtStart']}",
        f"{settings['size'] / (1 << 20):.0f} MiB file, in the page cache unless said otherwise, "
        f"{rounds}, "
        f"{settings['seconds']:g} s per fio run",
        "; ".join(facts["versions"].values()),
    ]


def as_text(report: dict) -> str:
    out = machine(report)
    for result in report["scenarios"]:
        out += ["", f"{result['name']}: {result['title']} ({rounds_text(result)})"]
        if result["rows"]:
            heads, lines = table(result)
            widths = [max(len(line[place]) for line in [heads, *lines])
                      for place in range(len(heads))]
            for line in [heads, *lines]:
                padded = (text.ljust(width) for text, width in zip(line, widths))
                out.append(("  " + "  ".join(padded)).rstrip())
        out += ["  " + text for text in remarks(result)]
    return "\n".join(out)


def as_markdown(report: dict) -> str:
    out = [f"- {text}" for text in machine(report)]
    for result in report["scenarios"]:
        out += ["", f"### {result['name']}", "", f"{result['title']} ({rounds_text(result)}).", ""]
        if result["rows"]:
            heads, lines = table(result)
            out += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
            out += ["| " + " | ".join(line) + " |" for line in lines]
            out.append("")
        out += [f"- {text}" for text in remarks(result)]
    return "\n".join(out)
