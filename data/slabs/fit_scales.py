"""Fit the scale factors of a GemNet of fairchem-core 1.10, with its own function.

    python data/slabs/fit_scales.py CONFIG.yml SCALES.pt [--key=value ...]

Its command, ``python -m fairchem.core.modules.scaling.fit``, ends in an AttributeError in 1.10.0:
it reads an argument that the command line no longer has.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fairchem.core.common import distutils
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config, setup_logging
from fairchem.core.modules.scaling.fit import compute_scaling_factors


def main() -> None:
    """As the command would."""
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    config, scales, *overrides = sys.argv[1:]
    Path(scales).parent.mkdir(parents=True, exist_ok=True)
    known = ["--mode", "train", "--cpu", "--debug", "--config-yml", config, "--checkpoint", scales]
    args, overrides = flags.get_parser().parse_known_args([*known, *overrides])
    setup_logging()
    distutils.setup_env_local()
    compute_scaling_factors(build_config(args, overrides))


if __name__ == "__main__":
    main()
