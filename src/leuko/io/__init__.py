"""Reading and writing: NIfTI, DICOM, label images and the record of a run."""
