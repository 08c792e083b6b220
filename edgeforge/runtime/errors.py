"""What can go wrong when a bundle is loaded or run; exit codes as in the toolchain."""


class BundleError(Exception):
    """A foreseeable failure of the runtime. `exit_code` is for command lines, `hint` is the cure."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UnusableBundle(BundleError):
    """Not a bundle, or one that this runtime cannot run; also a request it cannot serve."""

    exit_code = 3


class CorruptBundle(BundleError):
    """A file's size or hash differs from the manifest, or a file is missing or extra."""

    exit_code = 6


class MissingRequirement(BundleError):
    """A package or device that the bundle needs is not there."""

    exit_code = 7
