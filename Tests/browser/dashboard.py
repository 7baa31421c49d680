#!/usr/bin/env python3
"""Reads the Grafana dashboard with the types that Grafana itself publishes, and prints what was found as JSON.

usage: dashboard.py FILE        with the Python of .build-venv (dev/venv), which has grafana-foundation-sdk

`faults`: what Grafana's types do not know or read differently, and what does not fit together. `queries`: every
expression with its variables filled in, so that Prometheus can be asked.
"""

import enum
import importlib.util
import json
import re
import sys
import typing

from grafana_foundation_sdk.cog import encoder, plugins
from grafana_foundation_sdk.models import dashboard

WIDTH = 24
# What Grafana fills in by itself.
BUILT_IN = {"__rate_interval": "15s"}
PROMETHEUS = {"type": "prometheus", "uid": "${source}"}


def differences(ours, read, place=""):
    """What is in a value and is not there, or is another, once it was read and written again."""
    if isinstance(ours, dict) and isinstance(read, dict):
        for key, value in ours.items():
            if key in read:
                yield from differences(value, read[key], f"{place}/{key}")
            else:
                yield f"{place}/{key} means nothing to Grafana"
    elif isinstance(ours, list) and isinstance(read, list) and len(ours) == len(read):
        for index, pair in enumerate(zip(ours, read)):
            yield from differences(*pair, f"{place}/{index}")
    elif ours != read:
        yield f"{place} is {ours!r} and read as {read!r}"


def unknown_words(value, place="dashboard"):
    """Words where Grafana has a list of them, and which are not on it."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from unknown_words(item, place)
    elif hasattr(value, "__dict__") and not isinstance(value, enum.Enum):
        hints = typing.get_type_hints(type(value))
        for name, field in vars(value).items():
            kinds = [hints.get(name), *typing.get_args(hints.get(name))]
            words = {word.value for kind in kinds
                     if isinstance(kind, type) and issubclass(kind, enum.Enum) for word in kind}
            if words and isinstance(field, str) and field not in words:
                yield f"{place}: {name} is {field!r}, not one of {sorted(words)}"
            yield from unknown_words(field, f"{place}/{name}")


def layout(panels):
    """Panels that leave the grid or lie upon each other."""
    taken = {}
    for panel in panels:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if x >= WIDTH:
                    yield f"panel {panel['title']} leaves the grid"
                    return
                other = taken.setdefault((x, y), panel["title"])
                if other != panel["title"]:
                    yield f"panels {panel['title']} and {other} overlap"
                    return


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        ours = json.load(file)
    plugins.register_default_plugins()
    read = dashboard.Dashboard.from_json(ours)
    again = json.loads(encoder.JSONEncoder(sort_keys=True).encode(read))
    faults = [*differences(ours, again), *unknown_words(read), *layout(ours["panels"])]
    panels = ours["panels"]
    for name in ("id", "title"):
        if len({panel[name] for panel in panels}) != len(panels):
            faults.append(f"two panels have one {name}")
    variables = {variable["name"] for variable in ours["templating"]["list"]}
    queries = []
    for panel in panels:
        if not importlib.util.find_spec(f"grafana_foundation_sdk.models.{panel['type']}"):
            faults.append(f"panel {panel['title']} is of type {panel['type']}, which there is not")
        for target in panel["targets"]:
            query = target["expr"]
            if target["datasource"] != PROMETHEUS or panel["datasource"] != PROMETHEUS:
                faults.append(f"panel {panel['title']} asks another source")
            for name in re.findall(r"\$\{?(\w+)", query):
                if name not in variables | set(BUILT_IN):
                    faults.append(f"panel {panel['title']} uses ${name}, which there is not")
                query = query.replace(f"${name}", BUILT_IN.get(name, ".*"))
            queries.append({"panel": panel["title"], "query": query})
    json.dump({"faults": faults, "queries": queries}, sys.stdout, indent=1)


main()
