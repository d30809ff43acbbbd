"""Many files of one model: what each costs in bytes and in loss, as lines that a killed run goes on from."""

from quantgolf.sweep.asked import Effort, Opener, Outcome
from quantgolf.sweep.measure import Yardstick
from quantgolf.sweep.point import Documents, FrontierPoint, Measured, Tensor
from quantgolf.sweep.recipe import Recipe
from quantgolf.sweep.run import sweep

__all__ = [
    "Documents",
    "Effort",
    "FrontierPoint",
    "Measured",
    "Opener",
    "Outcome",
    "Recipe",
    "Tensor",
    "Yardstick",
    "sweep",
]
