ARG IMAGE
ARG TAG=1
FROM debian:$TGA AS one
FROM $IMAGE AS two
FROM --platform=$TARGETPLATFORM scratch AS one
FROM --platform=linux/arm64 scratch AS context
FROM --platform=linux/arm64 scratch AS for-arm64
FROM --platform=$BUILDPLATFORM scratch
