# Snakemake rule for `leuko segment`. It segments every DATA/SUBJECT/FLAIR.nii.gz, with the T1.nii.gz
# in the same folder if there is one:
#
#     snakemake -s leuko.smk --cores 4 --config data=DATA out=OUT options="--strict"
#
# To use the rule in a workflow, include it with `module` and set data, out and options in its
# config.
from pathlib import Path

DATA, OUT = config.get("data", "data"), config.get("out", "leuko")
OPTIONS = config.get("options", "")  # further options of the command, such as --rims include
FILES = {
    "mask": "wmh.nii.gz",
    "probability": "wmh_prob.nii.gz",
    "lesion_labels": "wmh_lesions.nii.gz",
    "lesions": "lesions.tsv",
    "report": "report.html",
    "record": "run.json",
}


def scans(wildcards):
    home = Path(DATA) / wildcards.subject
    there = {name: home / f"{name.upper()}.nii.gz" for name in ("flair", "t1")}
    return {name: str(path) for name, path in there.items() if name == "flair" or path.is_file()}


rule all:
    default_target: True
    input:
        expand(
            f"{OUT}/{{subject}}/run.json",
            subject=glob_wildcards(f"{DATA}/{{subject}}/FLAIR.nii.gz").subject,
        ),


rule leuko_segment:
    input:
        unpack(scans),
    output:
        **{name: f"{OUT}/{{subject}}/{file}" for name, file in FILES.items()},
    log:
        f"{OUT}/logs/{{subject}}.log",
    params:
        scans=lambda wildcards, input: [word for name in input.keys() for word in (f"--{name}", input[name])],
        out=lambda wildcards, output: str(Path(output.mask).parent),
        options=OPTIONS,
    threads: 1
    resources:
        mem_mb=3000,
    shell:
        "leuko segment {params.scans:q} -o {params.out:q} --threads {threads} {params.options} > {log:q} 2>&1"
