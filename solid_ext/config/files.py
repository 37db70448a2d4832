"""Configuration files: YAML of `name: value` lines, read without building anything else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

MOST_YAML = 1 << 20  # bytes


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class _Yaml(yaml.SafeLoader):
    """YAML whose numbers are those that people write: `1e-3` and `inf` too, and none to the base 8 or 60."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as its base class has it)
        first: [(tag, pattern) for tag, pattern in found if tag not in (_INT, _FLOAT)]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Yaml.add_implicit_resolver(_INT, re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
_Yaml.add_implicit_resolver(
    _FLOAT,
    re.compile(r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|[0-9]+e[-+]?[0-9]+|\.?(inf|nan))$", re.IGNORECASE),
    list("-+.0123456789inIN"),
)
_Yaml.add_constructor(_INT, lambda loader, node: int(loader.construct_scalar(node)))
_Yaml.add_constructor(
    _FLOAT, lambda loader, node: float(re.sub(r"\.(?=[in])", "", loader.construct_scalar(node).lower()))
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The fields that a YAML file sets, each once: lines of `name: value`, a value being one word or number.

    The file is looked through without building anything of it, so that no nesting and no alias costs memory or time.

    Raises:
        ValueError: no such file, one above 1 MB, or anything else in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"config: expected a YAML file, got {path}, which is none")
    expected = f"config: expected `name: value` lines in {path}"
    if path.stat().st_size > MOST_YAML:
        raise ValueError(f"{expected}, got {path.stat().st_size:,} bytes")
    try:
        text = path.read_text(encoding="utf-8")
        names: list[str] = []
        documents = depth = place = 0
        for event in yaml.parse(text, Loader=_Yaml):
            line = event.start_mark.line + 1
            documents += isinstance(event, yaml.DocumentStartEvent)
            if isinstance(event, yaml.AliasEvent) or documents > 1:
                raise ValueError(
                    f"{expected}, got {'an alias' if documents == 1 else 'a second document'}, line {line}"
                )
            if isinstance(event, yaml.CollectionStartEvent):
                if depth or isinstance(event, yaml.SequenceStartEvent):
                    kind = "a list" if isinstance(event, yaml.SequenceStartEvent) else "a mapping inside another"
                    raise ValueError(f"{expected}, got {kind}, line {line}")
                depth = 1
            elif isinstance(event, yaml.ScalarEvent) and depth:
                if place % 2 == 0 and event.value in names:
                    raise ValueError(f"{expected}, each name once, got {event.value!r} again, line {line}")
                names += [event.value] if place % 2 == 0 else []
                place += 1
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: expected YAML in {path}, got {_cause(error)}") from error
    except OSError as error:
        raise ValueError(f"config: expected a file that can be read, got {path} ({error.strerror})") from error
    try:
        fields = yaml.load(text, Loader=_Yaml)
    except (yaml.YAMLError, ValueError) as error:  # a tag, a 13th month, a number of 5,000 digits
        raise ValueError(f"config: expected YAML in {path}, got {_cause(error)}") from error
    if fields is None:
        return {}
    if not isinstance(fields, dict):
        raise ValueError(f"{expected}, got a {type(fields).__name__}")
    for name in fields:
        if not isinstance(name, str):
            raise ValueError(f"{expected}, got the name {name!r}, which is no word")
    return fields


def _cause(error: Exception) -> str:
    """What is wrong and in which line, where YAML says it."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"{problem}, line {mark.line + 1}" if mark and problem else str(error).splitlines()[0]
