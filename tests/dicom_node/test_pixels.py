"""What a header claims of its pixels is checked before it is believed."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless

from dicom_node.elements import encode
from dicom_node.errors import UnusableStudy
from dicom_node.pixels import check_format, decode
from doubles.catalogue import row
from doubles.series import make_series, make_volume


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        row("D16", "no rows", {"Rows": 0}, "pixel_geometry"),
        row("D16", "no columns", {"Columns": 0}, "pixel_geometry"),
        row("D19", "1 bit", {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "pixel_geometry"),
        row("D19", "12 bits", {"BitsAllocated": 12}, "pixel_geometry"),
        row("D19", "64 bits", {"BitsAllocated": 64}, "pixel_geometry"),
        row("D19", "no bits", {"BitsStored": 0}, "pixel_geometry"),
        row("D19", "more bits than room", {"BitsStored": 17, "HighBit": 16}, "pixel_geometry"),
        row("D19", "high bit", {"HighBit": 15}, "pixel_geometry"),
        row("D19", "sign", {"PixelRepresentation": 2}, "pixel_geometry"),
        row("D19", "inverted", {"PhotometricInterpretation": "MONOCHROME1"}, "photometric"),
        row("D19", "palette", {"PhotometricInterpretation": "PALETTE COLOR"}, "photometric"),
        row(
            "D19",
            "color",
            {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3},
            "photometric",
        ),
    ],
)
def test_a_pixel_format_that_is_not_handled_is_refused_by_name(
    changes: dict[str, object], code: str
) -> None:
    header = make_series()[0]
    assert header.BitsStored == 12
    for keyword, value in changes.items():
        setattr(header, keyword, value)

    with pytest.raises(UnusableStudy) as refusal:
        check_format(header)

    assert refusal.value.code == code


@pytest.mark.catalogue("D16")
@pytest.mark.parametrize("frames", [2**31 - 1, 0])
def test_frames_that_are_not_there_take_no_memory(tmp_path: Path, frames: int) -> None:
    image = make_series()[0]
    image.NumberOfFrames = frames
    path = tmp_path / "image.dcm"
    path.write_bytes(encode(image))

    with pytest.raises(UnusableStudy) as refusal:
        list(decode(path, (image.Rows, image.Columns), [0]))

    assert refusal.value.code == "pixel_length"


@pytest.mark.catalogue("D18")
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_every_decoder_gives_the_same_pixels(syntax: str) -> None:
    plain = make_series(volume=make_volume((1, 64, 72), highest=4095))[0]
    written = dcmread(BytesIO(encode(plain)))
    written.compress(syntax, generate_instance_uid=False)
    compressed: Dataset = dcmread(BytesIO(encode(written)))
    decoder = get_decoder(compressed.file_meta.TransferSyntaxUID)

    read = {
        name: decoder.as_array(compressed, decoding_plugin=name, raw=True)[0]
        for name in decoder.available_plugins
    }

    assert len(read) >= 2
    for name, array in read.items():
        np.testing.assert_array_equal(array, plain.pixel_array, err_msg=name)
