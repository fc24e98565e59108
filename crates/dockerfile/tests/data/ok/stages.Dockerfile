# syntax=docker/dockerfile:1
ARG VERSION=12
ARG BASE=debian:${VERSION}
FROM --platform=$BUILDPLATFORM ${BASE} AS compile
ARG VERSION
ARG TARGETARCH
ARG EXTRA=none
ENV DIR=/src PATH_ADD=$VERSION-x
WORKDIR $DIR
COPY *.c include/ ./
RUN make \
    # a comment between continued lines
    VERSION=$VERSION \

    && true
FROM compile as tested
RUN ["./app", "--self-test"]
FROM scratch
COPY --from=compile --chown=1000:1000 --chmod=755 /src/app /usr/bin/
COPY --from=0 /src/version /
COPY --from=registry.example/tools:1 ["/a b", "/c"]
ENTRYPOINT ["/usr/bin/app"]
CMD -- --help "$HOME"
