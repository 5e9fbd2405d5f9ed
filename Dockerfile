FROM python:3.13-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY expirer expirer
COPY lua lua
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="expirer" \
      org.opencontainers.image.description="Gives reserved stock back on time, exactly once: a sidecar for inventories kept in Redis" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /dist /dist
# pip compiles what it installs, so nothing is left to write at run time.
# hadolint ignore=DL3013  # the wheel has a version; only its extra is not a part of its name
RUN set -- /dist/*.whl && pip install --no-cache-dir --root-user-action=ignore "$1[http]"
ENV PYTHONDONTWRITEBYTECODE=1
# No EXPOSE and no HEALTHCHECK: it listens nowhere until EXPIRER_HTTP_PORT says so.
USER 10001:10001
ENTRYPOINT ["expirer"]
CMD ["run"]
