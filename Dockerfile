FROM python:3.13.14-slim@sha256:9662417aace5ae7b8e2609cce472b72a8958e134ba372808abe9cc1a0c0125e6 AS dependencies
COPY requirements.txt /build/
COPY requirements-otel.txt /build/
# requirements-otel.txt: with what WAYBILL_TRACING needs.
ARG REQUIREMENTS=requirements.txt
# The next stage copies only the environment, so it has no pip.
RUN python -m venv --without-pip /app/.venv \
    && python -m pip --python /app/.venv/bin/python install --no-cache-dir --disable-pip-version-check \
       --require-hashes --only-binary :all: -r "/build/$REQUIREMENTS"

FROM python:3.13.14-slim@sha256:9662417aace5ae7b8e2609cce472b72a8958e134ba372808abe9cc1a0c0125e6
RUN python -m pip uninstall --yes --quiet pip \
    && useradd --system --uid 10001 --home-dir /app --shell /usr/sbin/nologin waybill
WORKDIR /app
COPY --from=dependencies /app/.venv /app/.venv
COPY alembic.ini ./
COPY migrations ./migrations
COPY services ./services
COPY worker ./worker
ENV PATH=/app/.venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["python", "-m", "services.cli"]
CMD ["api", "--host", "0.0.0.0", "--port", "8000"]
