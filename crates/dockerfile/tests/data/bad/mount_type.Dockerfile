FROM a
RUN --mount=type=cach,target=/x true
