"""A DICOM node that completes studies."""

__version__ = "0.1.0"
