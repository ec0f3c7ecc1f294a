# The backend alone; docker-compose.yml runs it beside Redis and Label Studio.
FROM python:3.11-slim

# torch from PyPI brings the CUDA libraries along. For a smaller image on a machine without a GPU, name the index of
# torch's CPU builds: docker build --build-arg PIP_EXTRA_INDEX_URL=... .
ARG PIP_EXTRA_INDEX_URL=

# The model weights that transformers downloads, and Forelabel's own files: one volume keeps both.
ENV PYTHONUNBUFFERED=1 \
    FORELABEL_HOST=0.0.0.0 \
    FORELABEL_DATA_DIR=/data/forelabel \
    HF_HOME=/data/huggingface

WORKDIR /forelabel
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY backend backend
COPY plugin plugin
COPY decoder decoder
COPY retrieval retrieval
RUN pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[studio]' \
    && useradd --system --home-dir /data --create-home forelabel

USER forelabel
VOLUME /data
EXPOSE 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/health', timeout=2)"]
CMD ["forelabel", "serve"]
