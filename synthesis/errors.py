"""The errors of synthesis: one tree.

    SynthesisError
    ├── MissingSource        the method needs a contrast that was not given
    ├── UntrustedModel       a model folder does not match its card
    ├── MissingExtra         a library that a model needs is not installed
    ├── UnusableInput        the volumes cannot be worked with: `code` names the reason
    └── TrainingError        an experiment or a manifest is wrong

No message holds anything about a person.
"""


class SynthesisError(Exception):
    """Base of every error that this package raises on purpose."""


class MissingSource(SynthesisError):  # noqa: N818 - named after what happened
    """A method was asked to predict without a contrast that it cannot do without."""


class UntrustedModel(SynthesisError):  # noqa: N818
    """A model folder is absent, incomplete or altered."""


class MissingExtra(SynthesisError):  # noqa: N818
    """A library that a model needs is not installed.

    Args:
        library: its name.
        extra: the optional dependency of this package that brings it.
    """

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f"{library} is not installed, which this model needs: pip install '.[{extra}]'"
        )


class UnusableInput(SynthesisError):  # noqa: N818
    """Source volumes cannot be worked with.

    Attributes:
        code: short stable word such as `mask`, `registration`, `not_finite`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class TrainingError(SynthesisError):
    """An experiment file, a manifest or a training case is wrong."""
