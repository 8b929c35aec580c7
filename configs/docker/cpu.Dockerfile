# rust-edge on a box without a GPU. From the repository's root:
#   docker build -f configs/docker/cpu.Dockerfile -t rust-edge:cpu .
# Any base with Python 3.10 to 3.13, its venv module and glibc 2.28 or later will do (on aarch64 OpenVINO's wheel wants 2.35).
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY edge edge
COPY calibration calibration
COPY export export
COPY training training
ARG EXTRAS=openvino
RUN python3 -m venv /opt/rust-edge \
    && /opt/rust-edge/bin/pip install --no-cache-dir ".[${EXTRAS}]"

FROM ${BASE}
COPY --from=build /opt/rust-edge /opt/rust-edge
ENV PATH=/opt/rust-edge/bin:$PATH XDG_CACHE_HOME=/var/cache PYTHONDONTWRITEBYTECODE=1
# uid by number: it owns files in volumes, on other machines too
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/rust-edge rust-edge \
    && install -d -o rust-edge -g rust-edge /var/lib/rust-edge /var/cache/rust-edge /etc/rust-edge
USER 10001:10001
# the outbox, where a station file names a relative path; engines compiled for this box; station.yaml
WORKDIR /var/lib/rust-edge
VOLUME ["/var/lib/rust-edge", "/var/cache/rust-edge", "/etc/rust-edge"]
STOPSIGNAL SIGTERM
# A dead stage ends the daemon, and the restart policy starts it again. This looks at what it needs: station file, bundles, files.
HEALTHCHECK --interval=5m --timeout=60s --start-period=2m CMD ["rust-edge", "config", "check", "/etc/rust-edge/station.yaml"]
ENTRYPOINT ["rust-edge"]
CMD ["run", "-c", "/etc/rust-edge/station.yaml"]
