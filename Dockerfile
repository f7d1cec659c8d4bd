# pcdiff on a CPU, without rights and without a network while it runs: docs/install.md says how to call it.
FROM python:3.13-slim

RUN pip install --no-cache-dir uv && useradd --create-home pcdiff && install -d -o pcdiff /results
COPY requirements /source/requirements
RUN uv pip install --system --no-cache --require-hashes --no-deps -r /source/requirements/run.txt
COPY pyproject.toml README.md LICENSE /source/
COPY pcdiff /source/pcdiff
COPY configs /source/configs
COPY docs /source/docs
RUN uv pip install --system --no-cache --torch-backend=cpu '/source[dicom]'

USER pcdiff
WORKDIR /results
VOLUME /results
ENTRYPOINT ["pcdiff"]
CMD ["--help"]
