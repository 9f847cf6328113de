"""Training a classifier: `Trainer`, and the one step that it shares with the search's proxy.

A training that is killed at any moment and started again ends with the same weights, bit for bit on a CPU: whatever is
drawn at random (data order, augmentation, mixup, drop path) depends on the seed, the epoch and the step alone, and a
checkpoint says which step comes next.

Modules, each importing only from those named before it: errors, precision, state; step, optimizer, schedule, batch,
evaluation, generators, stop, options, settings; checkpoint, output; trainer.
"""

from mambavision.training.checkpoint import CHECKPOINT, read_checkpoint
from mambavision.training.errors import OtherTraining, TrainingDiverged, TrainingError
from mambavision.training.optimizer import default_optimizer, parameter_groups
from mambavision.training.output import BEST, LOG
from mambavision.training.precision import DTYPES, Autocast, autocast_for
from mambavision.training.state import Metrics
from mambavision.training.step import Loss, train_step
from mambavision.training.trainer import LOOK_EVERY, Trainer

__all__ = [
    "BEST",
    "CHECKPOINT",
    "DTYPES",
    "LOG",
    "LOOK_EVERY",
    "Autocast",
    "Loss",
    "Metrics",
    "OtherTraining",
    "Trainer",
    "TrainingDiverged",
    "TrainingError",
    "autocast_for",
    "default_optimizer",
    "parameter_groups",
    "read_checkpoint",
    "train_step",
]
