FROM python:3.13-slim-bookworm AS build
WORKDIR /src
COPY deploy/build-requirements.txt ./
RUN pip install --no-cache-dir --root-user-action=ignore --only-binary=:all: --require-hashes --requirement build-requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY expirer expirer
COPY lua lua
RUN pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /dist .

FROM python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="expirer" \
      org.opencontainers.image.description="Gives reserved stock back on time, exactly once: a sidecar for inventories kept in Redis" \
      org.opencontainers.image.licenses="MIT"
COPY deploy/requirements.txt /dist/
# pip compiles what it installs, so nothing is left to write at run time.
RUN pip install --no-cache-dir --root-user-action=ignore --only-binary=:all: --require-hashes --requirement /dist/requirements.txt
COPY --from=build /dist /dist
RUN pip install --no-cache-dir --root-user-action=ignore --no-deps /dist/*.whl
ENV PYTHONDONTWRITEBYTECODE=1
# No EXPOSE and no HEALTHCHECK: it listens nowhere until EXPIRER_HTTP_PORT says so.
USER 10001:10001
ENTRYPOINT ["expirer"]
CMD ["run"]
