"""The programs of `docs/examples/`, each run as it stands, for the tables of their page.

    OMP_NUM_THREADS=1 python -m bench.accuracy.bench_examples [--only kmeans] [--peer FOLDER] [--json]

FOLDER holds vector-quantize-pytorch (`pip install --target FOLDER vector-quantize-pytorch`). Seconds are of the
processor, in one thread, so that other work on the machine counts for little; contestants take turns by seed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench.harness import RESULTS, machine

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NAMES = ("head", "click_through", "digits", "kmeans")


def loaded(name: str) -> Any:
    """An example as a module."""
    described = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", choices=NAMES, nargs="+", default=NAMES)
    arguments.add_argument("--peer", help="a folder with vector-quantize-pytorch")
    arguments.add_argument("--json", action="store_true", help="write bench/results/examples.json")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "examples.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content |= {"machine": machine(), "scikit-learn": version("scikit-learn")}
    for name in options.only:
        module = loaded(name)
        given = (module.peer_in(options.peer),) if name == "digits" and options.peer else ()
        content[name] = module.run(*given)
        sys.stdout.write(json.dumps({name: content[name]}, indent=1) + "\n")
        sys.stdout.flush()
        if options.json:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
