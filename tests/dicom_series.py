"""DICOM series of a phantom whose six sides all differ, as scanners write them."""

import shutil

import numpy as np
import pydicom
from scipy.spatial.transform import Rotation

from leuko.io import dicom
from leuko.volume import Volume

SHAPE = (20, 24, 12)  # columns, rows, slices
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
MR, ENHANCED_MR, STUDY = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1", "1.2.3"
T1 = {"SeriesDescription": "t1_mprage_sag", "EchoTime": 2.5, "InversionTime": 900}


def grid(turned=(0, 0, 0), spacing_mm=(0.9, 1.1, 3.0)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turned, degrees=True).as_matrix() * spacing_mm
    affine[:3, 3] = -11, -17, 5
    return affine


def series_in(folder):
    return dicom.read_series(dicom.the_series(folder))


def lopsided(affine):
    """A head that is marked at its right, front and top, in the world of `affine`."""
    data = np.full(SHAPE, 100, np.int16)
    world = np.moveaxis(np.indices(SHAPE), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    for axis, grey in enumerate((200, 300, 400)):  # R, A, S
        data[world[..., axis] > np.quantile(world[..., axis], 0.9)] = grey
    return Volume(data, affine)


def write_series(folder, volume, *, number=2, uid="1.2.3.4", change=None, **elements):
    """A volume as one file a slice; `change(data set, slice)` may spoil it, or drop it: False."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = LPS @ volume.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    for k in range(volume.data.shape[2]):
        ds = pydicom.Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = MR, f"{uid}.{k + 1}"
        ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = "p", "A^B", "", ""
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SeriesNumber = STUDY, uid, number
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = "1.2.9", ""
        ds.StudyID, ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "1", "", "", ""
        ds.ReferringPhysicianName, ds.Modality, ds.Manufacturer = "", "MR", "made"
        ds.InstanceNumber = volume.data.shape[2] - k  # the order of files is not that of slices
        ds.SeriesDescription, ds.EchoTime, ds.InversionTime = "t2_flair_tra", 90, 2500
        ds.ImageOrientationPatient = [*(affine[:3, 0] / spacing[0]), *(affine[:3, 1] / spacing[1])]
        ds.ImagePositionPatient = list(affine[:3, :3] @ [0, 0, k] + affine[:3, 3])
        ds.PixelSpacing, ds.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        ds.Columns, ds.Rows = volume.data.shape[:2]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.PixelData = np.ascontiguousarray(volume.data[:, :, k].T).astype("<i2").tobytes()
        for name, value in elements.items():
            setattr(ds, name, value)
        if change is not None and change(ds, k) is False:
            continue
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.MediaStorageSOPClassUID = MR
        ds.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{k + 1}"
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        ds.save_as(folder / f"{uid}-{ds.InstanceNumber:03d}.dcm", enforce_file_format=True)
    return folder


def write_enhanced(folder, volume, *, order=None, uid="1.2.3.4", change=None, **elements):
    """A volume as one file with its slices in `order`; dimensions follow the order of the file."""
    slices = write_series(folder / "slices", volume, uid=uid, change=change, **elements)
    images = [pydicom.dcmread(path) for path in sorted(slices.iterdir(), reverse=True)]
    shutil.rmtree(slices)
    images = [images[k] for k in order or range(len(images))]
    frames = []
    for k, image in enumerate(images, start=1):
        content = data_set(StackID="1", InStackPositionNumber=k, DimensionIndexValues=[1, k])
        position = data_set(ImagePositionPatient=image.ImagePositionPatient)
        frames.append(data_set(FrameContentSequence=[content], PlanePositionSequence=[position]))
    whole = images[0]
    taken = {
        "PlaneOrientationSequence": ["ImageOrientationPatient"],
        "PixelMeasuresSequence": ["PixelSpacing", "SliceThickness"],
        "MREchoSequence": ["EchoTime"],
        "MRModifierSequence": ["InversionTime"],
    }
    now = {"EchoTime": "EffectiveEchoTime", "InversionTime": "InversionTimes"}
    shared = data_set()
    for sequence, names in taken.items():
        values = {now.get(n, n): whole[n].value for n in names if n in whole}
        setattr(shared, sequence, [data_set(**values)])
    for name in ("ImagePositionPatient", *(name for names in taken.values() for name in names)):
        whole.pop(name, None)
    whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = [shared], frames
    whole.NumberOfFrames = len(images)
    if whole.get("SOPClassUID") == MR:
        whole.SOPClassUID = ENHANCED_MR
    whole.PixelData = b"".join(image.PixelData for image in images)
    whole.save_as(folder / f"{uid}.dcm")
    return folder


def data_set(**elements):
    made = pydicom.Dataset()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def marked(segmentation, volume):
    """What a segmentation marks, placed by its own header alone, on the grid of `volume`."""
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    across, down = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3))
    between_rows, between_columns = shared.PixelMeasuresSequence[0].PixelSpacing
    back = np.linalg.inv(LPS @ volume.affine)
    mask = np.zeros(volume.data.shape, np.uint8)
    pixels = segmentation.pixel_array
    frames = pixels.reshape(-1, *pixels.shape[-2:])
    for frame, item in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        rows, columns = np.nonzero(frame)
        places = item.PlanePositionSequence[0].ImagePositionPatient + (
            np.outer(columns, across * between_columns) + np.outer(rows, down * between_rows)
        )
        voxels = places @ back[:3, :3].T + back[:3, 3]
        assert np.abs(voxels - np.rint(voxels)).max(initial=0) < 0.01
        mask[tuple(np.rint(voxels).astype(int).T)] = 1
    return mask
