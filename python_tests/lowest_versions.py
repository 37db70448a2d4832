"""Prints the oldest versions that pyproject.toml declares, as constraints of pip; those of `make test-lowest`.

torch is left out: `TORCH=` of the target says which, as an old one for Linux brings CUDA libraries of several GB.
"""

from __future__ import annotations

import re
from pathlib import Path

import tomllib


def lowest_versions(pyproject: str) -> dict[str, str]:
    """The version behind `>=` of each requirement, those of the extras among them."""
    project = tomllib.loads(pyproject)["project"]
    extras = project["optional-dependencies"].values()
    requirements = [*project["dependencies"], *(entry for extra in extras for entry in extra)]
    found = (re.match(r"([\w-]+)>=([\w.]+)", requirement) for requirement in requirements)
    return {match[1]: match[2] for match in found if match and match[1] != "torch"}


if __name__ == "__main__":
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    print(*(f"{name}=={version}" for name, version in lowest_versions(text).items()), sep="\n")
