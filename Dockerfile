# The service with the packages of requirements.lock, each checked against its hash; runs as a user without rights.
FROM python:3.11-slim AS build
WORKDIR /app
RUN python -m venv /venv
COPY requirements.lock ./
RUN /venv/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE motthe.py ./
COPY fare_engine fare_engine
COPY validators validators
COPY clearing clearing
COPY simulators simulators
COPY tariffs tariffs
RUN /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation -e .

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /data --create-home motthe
COPY --from=build /venv /venv
COPY --from=build /app /app
USER motthe
WORKDIR /data
VOLUME /data
ENV PATH=/venv/bin:$PATH MOTTHE_DATA=/data/motthe-data PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["motthe", "serve", "--host", "0.0.0.0", "--port", "8000"]
