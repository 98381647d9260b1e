"""What training refuses or gives up: each with a message that says what to do."""


class TrainingError(RuntimeError):
    """Base class of the expected errors of training."""


class CheckpointError(TrainingError):
    """A checkpoint that lacks a file or holds a truncated one, or none where one was asked for."""


class OutputFolderError(TrainingError):
    """An output folder that holds another run."""


class LaunchError(TrainingError):
    """What accelerate set up is not what was asked for."""


class NonFiniteLossError(TrainingError):
    """A loss or gradient that is no finite number."""


class StageNotLearnedError(TrainingError):
    """A stage of the curriculum that was not passed within the steps it was given."""
