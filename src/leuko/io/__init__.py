"""Files in and out: NIfTI, DICOM, label images, what a run records."""
