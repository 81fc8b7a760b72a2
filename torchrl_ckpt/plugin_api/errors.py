"""The mistakes that a user can make, one class for each.

A message says what is wrong, where, and what to do. The command line prints it without a
traceback and exits with `exit_code`. Any other exception is a bug and shown with its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Base class of the mistakes that a user can make and correct."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe or a flag cannot be read, resolved or validated."""


class PluginNotFound(UserError):
    """A recipe names a plugin that no installed distribution offers."""


class PluginBroken(UserError):
    """A plugin that is used cannot be imported or violates its contract."""


class PluginConflict(UserError):
    """Two distributions offer the plugin name that a recipe uses."""


class EnvironmentFailed(UserError):
    """An environment raised an error, or returned what its contract does not allow."""


class EngineEnvironmentFailed(UserError):
    """The Python environment that an engine needs for itself cannot be created."""


class UnsupportedByPlugin(UserError):
    """A plugin lacks an optional part of its contract that is needed here."""


class ExportRefused(UserError):
    """An export would overwrite a directory."""


class ModelError(UserError):
    """A model directory, its tokenizer or its weights cannot be used."""


class DataError(UserError):
    """A file with data, such as a data set or rollouts, cannot be used."""


class RunDirectoryInUse(UserError):
    """A directory of a run or of checkpoints is in use, or holds what a start would replace."""


class RunDirectoryUnwritable(UserError):
    """A directory of a run or of checkpoints cannot be created or written to."""


class RunDirectoryDamaged(UserError):
    """A file of a run's directory does not hold what this program wrote."""


class OutsideDirectory(UserError):
    """A file that was read names a path outside of the directory that the user has given."""


class CheckpointNotFound(UserError):
    """A checkpoint does not exist."""

    exit_code = 3


class CheckpointFailed(UserError):
    """A checkpoint could not be written or read: a full disk, a missing permission."""

    exit_code = 4


class WorkerProcessDied(CheckpointFailed):
    """A worker process ended before it had done its work."""


class CheckpointDamaged(UserError):
    """A checkpoint differs from what its manifest says."""

    exit_code = 4


class CheckpointMismatch(UserError):
    """A checkpoint does not fit the recipe, or this version of torchrl-ckpt."""

    exit_code = 3


class AddressInUse(UserError):
    """The inference server's port is in use."""


class ServerUnreachable(UserError):
    """No inference server answers, or it rejects the key."""

    exit_code = 5


class WrongPolicy(UserError):
    """The inference server does not serve the weights that it was asked to load."""

    exit_code = 5


class WaitTimeout(UserError):
    """Another process did not deliver in time. The message says what was awaited."""

    exit_code = 6


class NotFinite(UserError):
    """A loss, a gradient or a model has numbers that are not finite."""

    exit_code = 7


class ComponentFailed(UserError):
    """A process of the job ended with an error; its log says why."""

    exit_code = 1


class RunInterrupted(UserError):
    """The run was stopped on request before its last step, whichever signal asked for it.

    A script must not go on with the result, so it is not a success; nor is it an error.
    """

    exit_code = 130
