process LEUKO_SEGMENT {
    tag "${meta.id}"
    label 'process_single'

    container "leuko:0.1.0" // built from the Dockerfile of Leuko

    input:
    tuple val(meta), path(flair), path(t1) // t1: [] if there is none

    output:
    tuple val(meta), path("${prefix}/wmh.nii.gz")        , emit: mask
    tuple val(meta), path("${prefix}/wmh_prob.nii.gz")   , emit: probability
    tuple val(meta), path("${prefix}/tissue.nii.gz")     , emit: tissue     , optional: true
    tuple val(meta), path("${prefix}/wmh_rims.nii.gz")   , emit: rims_mask  , optional: true
    tuple val(meta), path("${prefix}/wmh_lesions.nii.gz"), emit: lesion_labels
    tuple val(meta), path("${prefix}/lesions.tsv")       , emit: lesions
    tuple val(meta), path("${prefix}/wmh_regions.nii.gz"), emit: regions    , optional: true
    tuple val(meta), path("${prefix}/report.html")       , emit: report
    tuple val(meta), path("${prefix}/run.json")          , emit: record
    path "versions.yml"                                  , emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    def t1_option = t1 ? "--t1 ${t1}" : ''
    """
    leuko segment \\
        --flair ${flair} ${t1_option} \\
        -o ${prefix} \\
        --threads ${task.cpus} \\
        ${args}

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        leuko: \$(leuko --version | sed 's/leuko //')
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    mkdir ${prefix}
    for name in wmh wmh_prob tissue wmh_rims wmh_lesions wmh_regions; do
        echo | gzip > ${prefix}/\$name.nii.gz
    done
    touch ${prefix}/lesions.tsv ${prefix}/report.html ${prefix}/run.json

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        leuko: \$(leuko --version | sed 's/leuko //')
    END_VERSIONS
    """
}
