FROM a
RUN --mount=type=cache,traget=/x true
