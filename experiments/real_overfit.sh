#!/usr/bin/env bash
# The whole pipeline on real scans: train briefly on DATA, then segment SUBJECTs, seen or not. It
# overfits, and shows that the parts fit together; no model comes of it.
#
#   experiments/real_overfit.sh DATA RUN SUBJECT...
#
# DATA holds labelled subjects; each SUBJECT is a folder with FLAIR.nii.gz and T1.nii.gz, and is
# measured if it has lesions.nii.gz or wmh.nii.gz.
set -euo pipefail
data=$1 run=$2
shift 2
[ -e "$run" ] || leuko train "$data" -o "$run" --init none --steps 200 --held-out 0
for subject in "$@"; do
    name=$(basename "$subject")
    echo "== $name"
    leuko segment --flair "$subject/FLAIR.nii.gz" --t1 "$subject/T1.nii.gz" \
        --model "$run" -o "$run/$name"
    for labels in "$subject"/{lesions,wmh}.nii.gz; do
        if [ -f "$labels" ]; then leuko evaluate "$labels" "$run/$name/wmh.nii.gz"; fi
    done
done
