"""The documentation says what is: its code runs, its tables are their files', its links and sources lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from solid_ext import Config
from solid_ext.cli import COMMANDS
from solid_ext.methods import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_ext"))

generated = importlib.import_module("generated")
tables = importlib.import_module("tables")

PAGES = sorted(page for page in DOCS.glob("**/*.md") if "_build" not in page.parts)
PROSE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "DESIGN.md", "CHANGELOG.md")] + PAGES
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{place}")
    for page in PAGES
    for place, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.M))
]
ANCHOR = re.compile(r"docs/[\w/-]+\.md(?:#[\w-]+)?")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """What `#name` may follow a link to the page: GitHub's slugs of its headings, generated ones among them."""
    text = re.sub(r"^```.*?^```", "", generated.expand(text_of(page)), flags=re.DOTALL | re.M)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def repository_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout, so that its files cannot be told from others")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(text_of(path))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            found = ast.get_docstring(node)
            if found:
                yield found


SOURCES = [
    f"{named(path)}: {' '.join(paragraph.split())}"
    for path in sorted((ROOT / "solid_ext").glob("**/*.py"))
    for docstring in docstrings(path)
    for paragraph in re.findall(r"^Source: .*?(?=\n\n|\Z)", docstring, flags=re.DOTALL | re.M)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_the_code_of_a_page_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"^import (faiss|hnswlib)\b", block, re.M):
        pytest.importorskip(name, reason=f"{name} is no dependency; who has it runs this")
    monkeypatch.chdir(tmp_path)
    lines = ["user_id,item_id,timestamp"]
    lines += [f"u{user},i{(user * 7 + step) % 150},{step}" for user in range(200) for step in range(6)]
    (tmp_path / "interactions.csv").write_text("\n".join(lines), encoding="utf-8")
    exec(compile(block, "docs", "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("page", PROSE, ids=named)
def test_a_table_of_results_holds_the_numbers_of_its_file(page: Path) -> None:
    assert tables.rewritten(text_of(page)) == text_of(page), "python docs/_ext/tables.py writes it again"


@pytest.mark.parametrize("page", PROSE, ids=named)
def test_a_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text_of(page), flags=re.DOTALL | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PROSE, ids=named)
def test_a_file_of_results_that_a_page_names_exists(page: Path) -> None:
    for name in re.findall(r"`bench/results/([\w./-]+)`", text_of(page)):
        assert (ROOT / "bench" / "results" / name).exists(), name
    if page.is_relative_to(DOCS):
        for name in re.findall(r"`([a-z0-9_]+/|[a-z0-9_]+\.json)`", text_of(page)):
            folders = {"best_", "paper_", "compare_", "scientific_", "robustness", "breakdown", "throughput"}
            assert not name.startswith(tuple(folders)) or (ROOT / "bench" / "results" / name).exists(), name


def test_there_are_sources_to_check() -> None:
    assert len(SOURCES) > 30


@pytest.mark.parametrize("source", SOURCES, ids=[f"source{place}" for place in range(len(SOURCES))])
def test_a_source_cites_a_publication_or_a_heading_that_exists(source: str) -> None:
    cited = ANCHOR.findall(source)
    for target in cited:
        page, _, anchor = target.partition("#")
        assert (ROOT / page).exists(), target
        assert anchor in anchors(ROOT / page), target
    paper = re.search(r"paper, (Algorithm|Eq\.|Module|Table) ?\d", source)
    assert cited or paper or re.search(r"\b(19|20)\d\d\b|scikit-learn, `", source), source


def test_no_docstring_or_comment_names_a_file_that_is_not_in_the_repository() -> None:
    files = repository_files()
    known = {"/".join(parts[place:]) for parts in (name.split("/") for name in files) for place in range(len(parts))}
    sources = [name for name in files if re.search(r"^(solid_ext|csrc|bench|docs)/.*\.(py|h|cpp|cu|cuh|sh|md)$", name)]
    for name in sources:
        text = text_of(ROOT / name)
        if name.endswith(".py"):
            text = "\n".join([*docstrings(ROOT / name), *re.findall(r"# .*", text)])
        elif not name.endswith(".md"):
            text = "\n".join(re.findall(r"// .*|^# .*", text, flags=re.M))
        for target in re.findall(r"(?<![\w/.\\{}*<-])[\w/-]+\.(?:py|h|cpp|cu|cuh|sh|md)\b(?!\()", text):
            if "NAME" not in target:
                assert target.removeprefix("./") in known, f"{name} names {target}"


def test_the_tree_in_contributing_is_the_tree() -> None:
    tree = re.search(r"```\n(.*?)```", text_of(ROOT / "CONTRIBUTING.md"), flags=re.DOTALL)
    assert tree is not None
    listed: set[str] = set()
    above: list[str] = []
    for line in tree[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        above = [*above[:depth], line.split()[0]]
        listed.add("".join(above))
    files = repository_files()
    folders = {"/".join(name.split("/")[:depth]) + "/" for name in files for depth in range(1, name.count("/") + 1)}
    wanted = {folder for folder in folders if not folder.startswith("bench/results/") or folder == "bench/results/"}
    wanted |= {name for name in files if re.fullmatch(r"(solid_ext|csrc)/(?!__init__)\w+\.(py|cpp)", name)}
    assert listed == wanted


def test_every_stop_of_the_walk_in_contributing_exists() -> None:
    walk = text_of(ROOT / "CONTRIBUTING.md").split("## A reader's walk")[1].split("\n## ")[0]
    stops = re.findall(r"`(solid_ext(?:\.\w+)+)`", walk)
    assert len(stops) > 15
    for stop in stops:
        assert callable(resolved(stop)), stop
    for path in re.findall(r"`(csrc/[\w/.]+)`", walk):
        assert (ROOT / path).exists(), path


def resolved(path: str) -> Any:
    """The object at a dotted path; a function that is called like its module is the function."""
    first, *rest = path.split(".")
    found, so_far = importlib.import_module(first), first
    for name in rest:
        so_far += f".{name}"
        found = getattr(found, name) if hasattr(found, name) else importlib.import_module(so_far)
    return found


def test_the_readme_is_one_screen_and_names_the_command_that_tests() -> None:
    text = text_of(ROOT / "README.md")
    prose = re.sub(r"^```.*?^```|`[^`\n]*`|<!--.*?-->|\]\([^)]*\)", " ", text, flags=re.DOTALL | re.M)
    assert len(re.findall(r"\w[\w'.@-]*", prose)) <= 600
    assert len(re.findall(r"\w[\w'.@-]*", re.sub(r"^\|.*$", "", prose, flags=re.M))) <= 500
    assert "make test" in text


def test_the_figure_is_what_its_program_draws() -> None:
    sys.path.insert(0, str(DOCS / "figures"))
    network = importlib.import_module("network")
    assert text_of(DOCS / "figures" / "network.svg") == network.network()


def test_the_generated_pages_have_every_field_flag_and_method() -> None:
    configuration, commands, methods = (generated.PARTS[name]() for name in ("configuration", "commands", "methods"))
    for field in Config().flat():
        assert f"| `{field}` |" in configuration, field
    for command in COMMANDS:
        assert f"## solid-ext {command}\n" in commands, command
    for method in METHODS:
        assert f"| `{method}` |" in methods, method


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=named)
def test_every_flag_and_field_that_a_page_names_exists(page: Path) -> None:
    fields, text = set(Config().flat()), text_of(page)
    flags = set(re.findall(r"\| `--([\w-]+)`", generated.commands())) | {field.replace("_", "-") for field in fields}
    for line in text.splitlines():
        # Flags of other programs stand beside their names.
        if re.search(r"solid-ext|`--", line) and not re.search(r"gpu_session|pip |tables\.py|cmake|torchrun", line):
            for flag in re.findall(r"(?<![\w-])--([a-z][\w-]*)", line):
                assert flag in flags | {"help"}, f"--{flag}"
    for field in re.findall(r"`([a-z_0-9]+): [\w.@+-]+`", text):
        assert field in fields | {"name", "timestamps_are_positions"}, field


def test_an_anchor_of_a_docstring_becomes_a_link() -> None:
    page = generated.api("solid_ext.ops")
    assert "](/kernels/nearest_code.md#contract)" in page
    assert "```{py:function} solid_ext.ops.nearest_code(" in page


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="`make docs` installs Sphinx")
    pytest.importorskip("myst_parser", reason="`make docs` installs MyST-Parser")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-d", tmp_path / "trees", DOCS]
    built = subprocess.run([*command, tmp_path / "html"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
