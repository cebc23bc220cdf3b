# smallfirst's server and proxy on processors. PyTorch is not in it: rows are fitted and models fine-tuned elsewhere, and language models
# need --build-arg EXTRAS=train,llama. A release pins the base by its digest: --build-arg BASE=python@sha256:…
ARG BASE=python:3.11-slim-trixie

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/smallfirst
COPY requirements.lock /src/
RUN /opt/smallfirst/bin/python -m pip install --require-hashes --only-binary :all: -r /src/requirements.lock
COPY LICENSE README.md pyproject.toml /src/
COPY smallfirst /src/smallfirst
COPY examples/claims_desk /src/examples/claims_desk
ARG EXTRAS=
RUN /opt/smallfirst/bin/python -m pip install --no-deps /src \
    && if [ -n "${EXTRAS}" ]; then /opt/smallfirst/bin/python -m pip install "/src[${EXTRAS}]"; fi \
    && find /opt/smallfirst/lib -type d -name tests -prune -exec rm -r {} + \
    && find /opt/smallfirst/lib -path "*/transformers/models/*.pyc" -delete

FROM ${BASE}
COPY --from=build /opt/smallfirst /opt/smallfirst
RUN useradd --uid 10001 --create-home --home-dir /tasks smallfirst
ENV PATH=/opt/smallfirst/bin:${PATH} PYTHONUNBUFFERED=1
USER 10001
WORKDIR /tasks
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["smallfirst"]
CMD ["--help"]
