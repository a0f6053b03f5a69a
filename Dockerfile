# The gateway as a container: `docker build -t gitlab-gateway .`, then see deploy/compose.yaml.
# Nothing is compiled here: every locked dependency has a wheel for this base, checked against its hash.

FROM python:3.13-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/gateway
COPY requirements.lock requirements-build.lock ./
RUN python -m pip install --no-cache-dir --require-hashes -r requirements-build.lock \
    && /opt/gateway/bin/python -m pip install --no-cache-dir --only-binary :all: --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
RUN python -m pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/gateway/bin/python -m pip install --no-cache-dir --no-index --no-deps /wheels/*.whl \
    && /opt/gateway/bin/python -m compileall -q /opt/gateway \
    && /opt/gateway/bin/python -m pip uninstall -q -y pip

FROM python:3.13-slim-bookworm
# A number, so that `runAsNonRoot` can be checked without reading /etc/passwd; the home is the only place written to.
RUN groupadd --system --gid 10001 gateway \
    && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/gitlab-gateway --create-home --shell /usr/sbin/nologin gateway \
    && chmod 0700 /var/lib/gitlab-gateway
COPY --from=build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_STATE_HOME=/var/lib
USER 10001:10001
WORKDIR /var/lib/gitlab-gateway
VOLUME ["/var/lib/gitlab-gateway"]
EXPOSE 8080 9901
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-I", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 9901, timeout=2); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["gitlab-gateway"]
CMD ["serve", "--config", "/etc/gitlab-gateway/gateway.yaml"]
