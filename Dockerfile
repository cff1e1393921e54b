# The operator's image: the program, what it needs of glibc, and the CA certificates that it checks AWS by.
# `make image` builds it with docker, podman or buildah.
ARG RUST=1.95.0
FROM docker.io/library/rust:${RUST}-slim-bookworm AS build
ARG RUST
# This image has it; rust-toolchain.toml would have the formatter and the linter fetched, too.
ENV RUSTUP_TOOLCHAIN=${RUST}
# It puts into the program which crates it is made of, for scanners.
RUN cargo install --locked cargo-auditable --version 0.7.7
WORKDIR /source
COPY . .
# The crates and what was compiled stay for the next build, outside of the image.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target \
    cargo auditable build --locked --profile image --package opentunnel-operator && \
    mkdir /image && cp target/image/opentunnel-operator /image/
# The libraries and the loader, where the program looks for them.
RUN ldd /image/opentunnel-operator | grep -o '/[^ ]*' | \
        xargs cp --parents --dereference --target-directory=/image /etc/ssl/certs/ca-certificates.crt

FROM scratch
COPY --from=build /image /
# glibc keeps one heap for all threads, and gives back what is free at its end: 3 MiB less after a start with 1,000 Tunnels,
# and not slower (docs/performance.md). By default it makes up to 8 heaps for each core of the node.
ENV MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=131072
# A number: the kubelet cannot tell of a name that it is not root's.
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/opentunnel-operator"]
CMD ["run"]
