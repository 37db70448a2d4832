"""Writes the known answers of `test_significance.py` with the mixed model of statsmodels, in an environment of its own:

pip install statsmodels && python python_tests/evaluate/seeds_statsmodels.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

CASES = {"seeds scatter": (5, 30, 0.4, 0.3, 1.0), "users scatter": (6, 25, 1.0, 0.2, 0.5)}


def gaps(seeds: int, users: int, of_user: float, of_seed: float, rest: float) -> np.ndarray:
    """[S, U] made-up gaps with these standard deviations."""
    rng = np.random.default_rng(seeds)
    one = of_seed * rng.standard_normal((seeds, 1)) + of_user * rng.standard_normal((1, users))
    return 0.3 + one + rest * rng.standard_normal((seeds, users))


def main() -> None:
    import pandas as pd
    import statsmodels.formula.api as smf

    found = {}
    for name, case in CASES.items():
        gap = gaps(*case)
        seed, user = np.indices(gap.shape)
        frame = pd.DataFrame({"gap": gap.ravel(), "seed": seed.ravel(), "user": user.ravel(), "all": 0})
        parts = {"user": "0 + C(user)", "seed": "0 + C(seed)"}
        fit = smf.mixedlm("gap ~ 1", frame, groups="all", vc_formula=parts, re_formula="0").fit(
            reml=True, method="lbfgs"
        )
        found[name] = {"mean": float(fit.fe_params["Intercept"]), "deviation": float(fit.bse_fe["Intercept"])}
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
