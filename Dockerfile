# Leuko for the CPU, with its weights; what it can do is told in docs/containers.md.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
COPY pyproject.toml README.md LICENSE THIRD_PARTY.md /source/
COPY src /source/src
RUN python3 -m venv /opt/leuko && /opt/leuko/bin/pip install --no-cache-dir "/source[cohort,dicom]"

FROM ${BASE}
COPY --from=build /opt/leuko /opt/leuko
COPY docs/entrypoint.sh /opt/leuko/bin/entrypoint
# Even where the root is read-only, /dev/shm is not.
ENV PATH=/opt/leuko/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HOME=/dev/shm TMPDIR=/dev/shm
USER 1000
ENTRYPOINT ["/bin/sh", "/opt/leuko/bin/entrypoint"]
CMD ["--help"]
