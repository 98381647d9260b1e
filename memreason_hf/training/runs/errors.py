"""The expected errors of training. Each message says what to do."""


class TrainingError(RuntimeError):
    """Base class of the expected errors of training."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, lacks a file or holds a damaged one."""


class OutputFolderError(TrainingError):
    """An output folder holds another run, or files of another program."""


class ArgumentsError(TrainingError, ValueError):
    """Training arguments from which no optimizer or schedule can be made, or that the model cannot follow."""


class SaveError(TrainingError):
    """A checkpoint or model could not be written: the disk is full, or the folder is read-only or gone."""


class LaunchError(TrainingError):
    """accelerate set up something other than the launcher or the arguments requested."""


class NonFiniteLossError(TrainingError):
    """A loss or a gradient is NaN or infinite."""


class StageNotLearnedError(TrainingError):
    """A stage of the curriculum was not passed within `max_steps_per_stage`."""
