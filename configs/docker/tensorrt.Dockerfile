# rust-edge with TensorRT, whose libraries and Python binding are the base image's. From the repository's root:
#   JetPack 6 (r36, Orin)      docker build -f configs/docker/tensorrt.Dockerfile -t rust-edge:jetpack6 \
#                                  --build-arg BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0 .
#   JetPack 7 (r38, Thor)      ... -t rust-edge:jetpack7 --build-arg BASE=nvcr.io/nvidia/tensorrt:25.10-py3 .
#   x86-64 with a CUDA GPU     ... -t rust-edge:cuda     --build-arg BASE=nvcr.io/nvidia/tensorrt:25.10-py3 .
# An engine fits one version of TensorRT: another base has every engine built again, on the device, at the first start.
ARG BASE=nvcr.io/nvidia/tensorrt:25.10-py3

FROM ${BASE} AS build
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
# found, not imported: on a Jetson the driver's libraries are there only when the container runs
RUN python3 -c "import importlib.util as u, sys; sys.exit(None if u.find_spec('tensorrt') else 'BASE has no TensorRT for its python3; expected an image with python3-libnvinfer or the tensorrt package')" \
    && test -e /usr/local/cuda/include/cuda.h
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY edge edge
COPY calibration calibration
COPY export export
COPY training training
ARG EXTRAS=tensorrt
# pycuda is compiled here; libcuda itself comes from the host's driver, so the link is against CUDA's stub of it.
# NVIDIA's images name a PIP_CONSTRAINT, which is for their own frameworks.
RUN python3 -m venv --system-site-packages /opt/rust-edge \
    && export CPATH=/usr/local/cuda/include LIBRARY_PATH=/usr/local/cuda/lib64:/usr/local/cuda/lib64/stubs PIP_CONSTRAINT= \
    && /opt/rust-edge/bin/pip install --no-cache-dir ".[${EXTRAS}]"

FROM ${BASE}
COPY --from=build /opt/rust-edge /opt/rust-edge
ENV PATH=/opt/rust-edge/bin:$PATH XDG_CACHE_HOME=/var/cache PYTHONDONTWRITEBYTECODE=1
# uid by number: it owns files in volumes, on other machines too. A Jetson's GPU belongs to the host's group video: --group-add.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/rust-edge rust-edge \
    && install -d -o rust-edge -g rust-edge /var/lib/rust-edge /var/cache/rust-edge /etc/rust-edge
USER 10001:10001
# the outbox, where a station file names a relative path; engines built on this GPU; station.yaml
WORKDIR /var/lib/rust-edge
VOLUME ["/var/lib/rust-edge", "/var/cache/rust-edge", "/etc/rust-edge"]
STOPSIGNAL SIGTERM
# A dead stage ends the daemon, and the restart policy starts it again. This looks at what it needs: station file, bundles, files.
HEALTHCHECK --interval=5m --timeout=60s --start-period=15m CMD ["rust-edge", "config", "check", "/etc/rust-edge/station.yaml"]
ENTRYPOINT ["rust-edge"]
CMD ["run", "-c", "/etc/rust-edge/station.yaml"]
