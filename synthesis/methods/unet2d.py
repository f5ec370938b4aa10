"""Encoder-decoder for single images: projections, photographs, one slice.

A case is an array of one slice. Rotation out of the plane, slice thickness and neighbors mean
nothing there; the network and its loss are those of the 2.5-D method.
"""

from synthesis.methods.unet import EncoderDecoder, UNetParameters


class UNet2DParameters(UNetParameters):
    """Hyper-parameters of `UNet2D`."""

    slices: int = 1
    views: tuple[int, ...] = (0,)


class UNet2D(EncoderDecoder[UNet2DParameters]):
    """Any subset of the source images to any target image."""

    parameters_type = UNet2DParameters
