"""Parts of pages made from the package when the site is built: `<!-- generated: NAME -->` in a page's source.

The configuration and the command line come from their dataclasses, the methods from their table and the API reference
from signatures and docstrings, so that none of these pages can say what the code no longer does.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

from solid_ext.cli import COMMANDS
from solid_ext.config import PAPER, Config
from solid_ext.methods import METHODS

MARK = re.compile(r"<!-- generated: ([\w.]+) -->")
TOP = "solid_ext"
PACKAGES = [
    f"solid_ext.{name}"
    for name in ("ops", "nn", "data", "evaluate", "models", "scorers", "train", "serve", "device", "compare")
]
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Errors")
ENTRY = re.compile(r"[\w.,'()* \[\]-]{1,40}: ")
ANCHOR = re.compile(r"docs/([\w/-]+)\.md#([\w-]+)")


def field_docs(section: type) -> dict[str, str]:
    """The string below each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def configuration() -> str:
    """A table a section of the configuration: field, default, the paper's value where it differs, meaning."""
    return "\n\n".join(_section(Config))


def _section(section: type) -> Iterator[str]:
    hints, docs = get_type_hints(section), field_docs(section)
    fields = [field for field in dataclasses.fields(section) if not dataclasses.is_dataclass(hints[field.name])]
    if fields:
        rows = ["| field | default | preset `paper` | meaning |", "|---|---|---|---|"]
        for field in fields:
            default, paper = _shown(_default(field)), _shown(PAPER[field.name]) if field.name in PAPER else ""
            allowed = get_args(hints[field.name]) if get_origin(hints[field.name]) is Literal else ()
            choices = f" One of {', '.join(f'`{choice}`' for choice in allowed)}." if allowed else ""
            told = docs[field.name] + ("" if docs[field.name].endswith(".") else ".")
            rows.append(
                f"| `{field.name}` | {default} | {paper if paper != default else ''} | {_cell(told + choices)} |"
            )
        yield "\n".join(rows)
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(hints[field.name]):
            told = (inspect.getdoc(hints[field.name]) or "").strip()
            yield f"## {field.name}\n\n{told}"
            yield from _section(hints[field.name])


def commands() -> str:
    """A section a command of `solid-ext`: what it does, its examples and its flags."""
    return "\n\n".join(_command(name, command) for name, command in COMMANDS.items())


def _command(name: str, command: Any) -> str:
    prose, examples = [], []
    for line in inspect.getdoc(command).splitlines():  # type: ignore[union-attr]
        example = line.strip().removeprefix("Example: ")
        (examples if example != line.strip() else prose).append(example)
    text = f"## solid-ext {name}\n\n" + re.sub(r"\n{3,}", "\n\n", "\n".join(prose).strip())
    if examples:
        text += "\n\n```console\n" + "\n".join(f"$ {example}" for example in examples) + "\n```"
    hints, docs = get_type_hints(command, include_extras=True), field_docs(command)
    rows, settings = [], ""
    for field in dataclasses.fields(command):
        metadata = getattr(hints[field.name], "__metadata__", ())
        plain = get_args(hints[field.name])[0] if metadata else hints[field.name]
        if dataclasses.is_dataclass(plain):
            settings = "Every field of the [configuration](configuration.md) is a flag of this command too."
            continue
        renamed = next((entry.name for entry in metadata if getattr(entry, "name", None)), field.name)
        positional = any("POSITIONAL" in repr(entry).upper() for entry in metadata)
        flag = f"`{renamed.upper()}`" if positional else f"`--{renamed.replace('_', '-')}`"
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        choices = get_args(plain) if get_origin(plain) is Literal else ()
        told = docs.get(field.name, "") + (f" One of {', '.join(f'`{each}`' for each in choices)}." if choices else "")
        rows.append(f"| {flag} | {'required' if required else _shown(_default(field))} | {_cell(told)} |")
    if rows:
        text += "\n\n| flag | default | meaning |\n|---|---|---|\n" + "\n".join(rows)
    return text + (f"\n\n{settings}" if settings else "")


def methods() -> str:
    """The methods that are compared: what each one is and which fields it sets."""
    rows = ["| method | what it is | sets |", "|---|---|---|"]
    for name, method in METHODS.items():
        fields = ", ".join(f"`{field}: {_shown(value).strip('`')}`" for field, value in method.fields.items())
        rows.append(f"| `{name}` | {method.description} | {fields} |")
    return "\n".join(rows)


def api(module: str) -> str:
    """The public names of a module: signature and docstring; what the top-level package takes from others is named."""
    package = importlib.import_module(module)
    parts, elsewhere = [], []
    for name in package.__all__:
        value = getattr(package, name)
        home = next(
            (other for other in PACKAGES if other != module and name in importlib.import_module(other).__all__), ""
        )
        if module == TOP and home:
            elsewhere.append(f"`{name}` of [{home}](#{home.replace('.', '')})")
        elif callable(value):
            parts.append(_documented(f"{module}.{name}", value))
    if elsewhere:
        parts.append("The package also gives these names: " + ", ".join(elsewhere) + ".")
    return "\n\n".join(parts)


def _documented(path: str, value: Any) -> str:
    directive = "py:class" if inspect.isclass(value) else "py:function"
    body = [_docstring(inspect.getdoc(value) or "")]
    if inspect.isclass(value):
        for name, member in vars(value).items():
            target = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
            if (
                not name.startswith("_")
                and name != "extra_repr"
                and inspect.isfunction(target)
                and inspect.getdoc(target)
            ):
                body.append(_nested("py:method", f"{name}{_signature(target)}", target))
    return f"`````{{{directive}}} {path}{_signature(value)}\n\n" + "\n\n".join(body) + "\n`````"


def _nested(directive: str, signature: str, value: Any) -> str:
    return f"````{{{directive}}} {signature}\n:no-index-entry:\n\n{_docstring(inspect.getdoc(value) or '')}\n````"


def _signature(value: Any) -> str:
    """Names and defaults; types are in the docstrings, as shapes."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return "()"
    kept = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values() if p.name != "self"]
    return str(inspect.Signature(kept)).replace("\n", " ")


def _docstring(text: str) -> str:
    """A docstring as Markdown: its sections as lists, its anchors as links."""
    out: list[str] = []
    for block in re.split(r"\n\n+(?=\S)", text):
        head, _, rest = block.partition("\n")
        name = head.split(":")[0]
        if name in SECTIONS and head.startswith(f"{name}:"):
            entries = (
                textwrap.dedent(rest) if head == f"{name}:" else head.removeprefix(f"{name}:").strip() + "\n" + rest
            )
            out.append(f"**{name}**\n\n" + _entries(entries))
        else:
            out.append(block)
    return ANCHOR.sub(lambda found: f"[{found[0]}](/{found[1]}.md#{found[2]})", "\n\n".join(out))


def _entries(text: str) -> str:
    """A list, each of whose entries begins with a name and a colon; a single one is a paragraph."""
    first = [line for line in text.splitlines() if ENTRY.match(line)]
    if len(first) < 2:
        return text
    return "\n".join(f"* {line}" if line in first else f"  {line.strip()}" for line in text.splitlines())


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _shown(value: Any) -> str:
    return "" if value in ("", None) else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PARTS: dict[str, Callable[[], str]] = {"configuration": configuration, "commands": commands, "methods": methods}


def expand(source: str) -> str:
    """A page's source with its generated parts in place."""
    return MARK.sub(lambda found: PARTS[found[1]]() if found[1] in PARTS else api(found[1]), source)


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""

    def read(_: Any, __: str, source: list[str]) -> None:
        source[0] = expand(source[0])

    app.connect("source-read", read)
    return {"parallel_read_safe": True}
