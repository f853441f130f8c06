# llmbus as one image for routers and nodes: `docker run llmbus router`, `docker run llmbus node macmini`.
FROM python:3.12-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# Every file is checked against the lock's hashes here; what is installed below comes from nowhere else.
COPY requirements.lock .
RUN python -m pip download --quiet --require-hashes --only-binary :all: --dest /wheels --requirement requirements.lock
COPY . .
RUN python -m pip wheel --quiet --no-deps --no-index --find-links /wheels --wheel-dir /wheels .
# Only what llmbus itself needs; the tools of its tests stay behind.
RUN python -m venv /opt/llmbus && /opt/llmbus/bin/pip install --quiet --no-index --find-links /wheels llmbus

FROM python:3.12-slim
ENV PATH=/opt/llmbus/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --system --no-create-home --home-dir /nonexistent llmbus
COPY --from=build /opt/llmbus /opt/llmbus
USER llmbus
ENTRYPOINT ["llmbus"]
