FROM scratch AS files
COPY never /
FROM files AS child
COPY --from=files a /a
COPY --from=docker.io/library/alpine:latest b /b
COPY --from=0 c /c
FROM --platform=linux/arm/v7 files
FROM --platform=linux/386 alpine AS own
COPY --from=child --link a /
RUN --mount=from=files,target=/m true
COPY --from=alpine:3 d /d
