"""A mask becomes a DICOM segmentation of the series that it is of; needs the extra `dicom`."""

import importlib.metadata
from pathlib import Path

import highdicom
import numpy as np
import pydicom
from pydicom.sr.coding import Code

from leuko.dicom import Series
from leuko.volume import Volume


def write_segmentation(path: Path, mask: Volume, source: Series) -> None:
    """Write a mask, on the grid that `read_series` gave for `source`, as a DICOM SEG of WMH."""
    images = [pydicom.dcmread(file) for file in source.paths]
    version = importlib.metadata.version("leuko")
    kind = highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="White matter hyperintensity",
        segmented_property_category=Code("49755003", "SCT", "Morphologically abnormal structure"),
        segmented_property_type=Code("110702", "DCM", "White Matter T2 Hyperintensity"),
        algorithm_type=kind,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="Leuko", version=version, family=Code("123110", "DCM", "Artificial Intelligence")
        ),
        anatomic_regions=[Code("68523003", "SCT", "Cerebral white matter")],
    )
    if len(images) > 1:
        across, down = np.array(images[0].ImageOrientationPatient, float).reshape(2, 3)
        normal = np.cross(across, down)
        images.sort(key=lambda image: float(np.array(image.ImagePositionPatient, float) @ normal))
    segmentation = highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=np.ascontiguousarray((mask.data > 0).T.astype(np.uint8)),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        series_instance_uid=highdicom.UID(),
        series_number=9000 + source.number % 1000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="Leuko",
        manufacturer_model_name="Leuko",
        software_versions=version,
        device_serial_number="none",
        omit_empty_frames=bool(mask.data.any()),
    )
    segmentation.SeriesDescription = f"WMH (Leuko {version})"
    segmentation.save_as(path)
