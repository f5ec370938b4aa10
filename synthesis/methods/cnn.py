"""Simple CNN: a few convolutions at full resolution (Sevetlidis 2016; Nie 2016)."""

from torch import nn

from synthesis.methods.unet import EncoderDecoder, UNetParameters
from synthesis.networks import DilatedCNN


class CNNParameters(UNetParameters):
    """Hyper-parameters of `SimpleCNN`; it has no levels."""

    slices: int = 3
    width: int = 48
    levels: int = 0
    crop: int = 64


class SimpleCNN(EncoderDecoder[CNNParameters]):
    """Any subset of the sources to any target, from what lies within ten pixels."""

    parameters_type = CNNParameters

    def build_network(self) -> nn.Module:
        """Return a `DilatedCNN`."""
        return DilatedCNN(self.shape)
