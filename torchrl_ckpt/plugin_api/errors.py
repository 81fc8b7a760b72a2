"""The mistakes a user can make, one class each.

A message says what is wrong, where, and what to do. The command line prints it without a
traceback and exits with `exit_code`; anything that is not a `UserError` is a bug, shown whole.
"""

from __future__ import annotations


class UserError(Exception):
    """Base of every mistake that a user can make and mend."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe or a flag that cannot be read, resolved or validated."""


class PluginNotFound(UserError):
    """A recipe names a plugin that no installed distribution offers."""


class PluginBroken(UserError):
    """A plugin that was asked for cannot be imported or does not keep its contract."""


class PluginConflict(UserError):
    """Two distributions offer the plugin name that a recipe uses."""


class EngineEnvironmentFailed(UserError):
    """The Python environment that an engine has for itself cannot be made."""


class NotOffered(UserError):
    """A plugin was asked for something that its contract leaves optional."""


class ExportRefused(UserError):
    """An export would overwrite what is there."""


class ModelError(UserError):
    """A model directory or tokenizer that cannot be used."""


class DataError(UserError):
    """A data set file or an environment's text that cannot be used."""


class RunDirectoryInUse(UserError):
    """A fresh run in a directory that holds checkpoints, or that another run is using."""


class RunDirectoryUnwritable(UserError):
    """A run's directory that cannot be created or written to."""


class CheckpointNotFound(UserError):
    """A checkpoint was asked for that is not there."""

    exit_code = 3


class CheckpointFailed(UserError):
    """A checkpoint could not be written or read: a full disk, a missing permission."""

    exit_code = 4


class WorkerProcessDied(CheckpointFailed):
    """A process that works for another one is gone before its work was done."""


class CheckpointDamaged(UserError):
    """A checkpoint does not hold what its manifest promises."""

    exit_code = 4


class CheckpointMismatch(UserError):
    """A checkpoint belongs to another model, optimiser or data set than the recipe's."""

    exit_code = 3


class AddressInUse(UserError):
    """The inference server's port is taken."""


class ServerUnreachable(UserError):
    """No inference server answers, or it refuses the key."""

    exit_code = 5


class WrongPolicy(UserError):
    """The inference server does not serve the weights it was told to serve."""

    exit_code = 5


class WaitTimeout(UserError):
    """Another process did not deliver in time. The message names what was waited for."""

    exit_code = 6


class ComponentFailed(UserError):
    """A process of the job ended with an error; its own log says why."""

    exit_code = 1


class RunInterrupted(UserError):
    """The run was asked to stop before its last step, and did."""

    exit_code = 130
