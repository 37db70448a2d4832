"""The work that `bench/profile.sh` samples, and its report.

python bench/profile_work.py OP            runs the operation's headline shape for some seconds, on one thread
python bench/profile_work.py OP --report   reads `perf report`'s lines "percent;object;symbol", writes the result file
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch
from harness import RESULTS, machine

SECONDS = 10.0
SMALLEST = 0.1  # percent: functions below it are left out


def nearest_code_work() -> tuple[str, Callable[[], object]]:
    from solid_ext.ops import nearest_code

    x, codebook = torch.randn(10240, 32), torch.randn(590, 32)
    return "N=10240 K=590 D=32", lambda: nearest_code(x, codebook)


def dynamic_mlp_work() -> tuple[str, Callable[[], object]]:
    from solid_ext.nn import DynamicMLP

    layer = DynamicMLP(sizes=(32, 32, 32), code_dim=32)
    x, z_item, z_semantic = (torch.randn(1024, 32, requires_grad=True) for _ in range(3))
    return "forward + backward, B=1024 D=O=k=32 P=2", lambda: layer(x, z_item, z_semantic).sum().backward()


WORK = {"nearest_code": nearest_code_work, "dynamic_mlp": dynamic_mlp_work}


def report(operation: str, shape: str) -> None:
    functions: dict[str, float] = {}
    for line in sys.stdin:
        if line.startswith("#") or line.count(";") < 2:
            continue
        percent, module, symbol = (part.strip() for part in line.split(";", 2))
        ours = module.startswith("_solid_ext")
        name = symbol.removeprefix("[.] ").replace("(anonymous namespace)::", "") if ours else f"outside: {module}"
        functions[name] = functions.get(name, 0.0) + float(percent.rstrip("%"))
    shares = {name: round(share, 2) for name, share in functions.items() if share >= SMALLEST}
    ordered = dict(sorted(shares.items(), key=lambda item: -item[1]))
    path = RESULTS / f"profile_{operation}.json"
    content = {"machine": machine(), "case": f"{operation} {shape}, 1 thread", "percent of samples": ordered}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(path.read_text())


def main() -> None:
    operation = sys.argv[1] if len(sys.argv) > 1 else ""
    if operation not in WORK:
        raise SystemExit(f"profile_work: expected one of {', '.join(WORK)}, got {operation!r}")
    torch.set_num_threads(1)
    shape, work = WORK[operation]()
    if "--report" in sys.argv:
        report(operation, shape)
        return
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        work()


if __name__ == "__main__":
    main()
