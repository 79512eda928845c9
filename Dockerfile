# The images: `docker build --target operator .`, `docker build --target agent .`, and the agent for
# OpenTofu, `docker build --target agent --build-arg ENGINE=tofu .`
#
# Each is: a small Debian with Python and certificates, the dependencies, our code as source with its
# byte code. The agent has its engine and git on top. Nothing here is of one builder only (the legacy
# builder, BuildKit, Podman and buildah take it) or of one processor, and it needs the network only for
# what the folder `prepared` of the build context lacks, prepared/wheels/*.whl and prepared/terraform or
# prepared/tofu, and for git, which the base lacks.
# The whole name: what a short one stands for is Docker's own rule.
ARG BASE_IMAGE=docker.io/library/python:3.13-slim-bookworm

# ---- what is common: the base without what no container needs ------------------------------------
FROM ${BASE_IMAGE} AS base

FROM base AS system
COPY images/prune.py /tmp/prune.py
RUN python3 -B /tmp/prune.py --in-a-build && rm -rf /tmp/* /root/.[!.]*

# A list of it, for the stages that add only what is not there yet.
FROM system AS listed
RUN python3 -BSc 'import os; [print(os.path.join(f, n)) for f, d, ns in os.walk("/") for n in ns + d]' > /listed

FROM scratch AS runtime
COPY --from=system / /
# PYTHONDONTWRITEBYTECODE: the byte code is there already, and the root file system is read-only.
ENV PATH=/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    HOME=/work \
    PYTHONPATH=/opt/terrahalt/src:/opt/terrahalt/dependencies \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# ---- terraform or tofu: the file from the build context, or a release checked by hash and signature
FROM base AS engine
ARG TERRAFORM_VERSION=1.11.4
ARG TOFU_VERSION=1.12.6
COPY images/fetch_engine.py images/*.asc prepared* /src/
ARG ENGINE=terraform
RUN set -eu; \
    case "$ENGINE" in \
        terraform) version="$TERRAFORM_VERSION" ;; \
        tofu) version="$TOFU_VERSION" ;; \
        *) echo "ENGINE is '$ENGINE', it must be terraform or tofu" >&2; exit 1 ;; \
    esac; \
    if [ ! -f "/src/$ENGINE" ]; then \
        command -v gpg > /dev/null || { apt-get update && apt-get install --yes --no-install-recommends gnupg; }; \
        python3 -B /src/fetch_engine.py "$ENGINE" --version "$version" --into "/src/$ENGINE"; \
    fi; \
    install -D --mode=0755 "/src/$ENGINE" "/out/usr/local/bin/$ENGINE"; \
    "/out/usr/local/bin/$ENGINE" version

# ---- git and ssh, which the engine runs to fetch modules; without perl and what else they pull in -
FROM base AS git
RUN set -eu; \
    command -v git > /dev/null && command -v ssh > /dev/null \
    || { apt-get update && apt-get install --yes --no-install-recommends git openssh-client; }
COPY --from=listed /listed /listed
COPY images/collect_git.py /tmp/collect_git.py
RUN python3 -B /tmp/collect_git.py --listed /listed --into /out

# ---- dependencies --------------------------------------------------------------------------------
FROM base AS installer
RUN python3 -m venv /venv
COPY images/install_dependencies.sh requirements prepared* /src/

FROM installer AS agent-dependencies
RUN sh /src/install_dependencies.sh agent /out/opt/terrahalt/dependencies

FROM installer AS operator-dependencies
RUN sh /src/install_dependencies.sh operator /out/opt/terrahalt/dependencies

# ---- our code ------------------------------------------------------------------------------------
FROM base AS agent-source
COPY protocol/src agent_image/src /out/opt/terrahalt/src/
RUN python3 -m compileall -q --invalidation-mode unchecked-hash -s /out /out/opt/terrahalt/src \
    && mkdir --mode=0777 /out/work

FROM base AS operator-source
COPY protocol/src operator/src /out/opt/terrahalt/src/
RUN python3 -m compileall -q --invalidation-mode unchecked-hash -s /out /out/opt/terrahalt/src \
    && mkdir --mode=0777 /out/work

# ---- the images ----------------------------------------------------------------------------------
FROM runtime AS operator
COPY --from=operator-dependencies /out/ /
COPY --from=operator-source /out/ /
WORKDIR /work
USER 65532:65532
ENTRYPOINT ["python3", "-m", "terrahalt_operator"]

# What both engines' images have in common comes first, so that they share it; our code, which changes most, last.
FROM runtime AS agent
COPY --from=git /out/ /
COPY --from=agent-dependencies /out/ /
COPY --from=engine /out/ /
COPY --from=agent-source /out/ /
WORKDIR /work
USER 65532:65532
# A SIGTERM that comes before there is a handler for it waits, where the first process of a container would lose it.
ENTRYPOINT ["env", "--block-signal=TERM", "python3", "-m", "terrahalt_agent"]
