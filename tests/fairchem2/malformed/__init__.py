"""Inputs that are malformed in one place each, and what the last line of the command has to say of them.

An entry gets a folder with the small inputs of these tests, spoils one of them, and returns what is typed
besides. What numbers and words of a config cannot mean is in ``test_config_rules``.
"""

from tests.fairchem2.malformed import checkpoints, frames, senseless, structures
from tests.fairchem2.malformed.commands import CONFIGS
from tests.fairchem2.malformed.spoiling import CASES, cut

__all__ = ["CASES", "CONFIGS", "checkpoints", "cut", "frames", "senseless", "structures"]
